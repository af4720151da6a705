//! What the sources are still to be told, until they listen.

use std::collections::BTreeMap;
use std::sync::mpsc::{SyncSender, TrySendError};

use anyhow::{Result, bail};
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::identity::StreamId;

use crate::config::Config;
use crate::source::Command;

/// What the sources are still to be told: of each stream the last word, then the last configuration. A server can
/// have no more of it than there are streams.
#[derive(Default)]
pub(super) struct Orders {
    rewinds: BTreeMap<StreamId, (StreamPosition, u64, bool)>,
    configure: Option<Command>,
}

impl Orders {
    pub(super) fn rewind(
        &mut self,
        stream: StreamId,
        position: StreamPosition,
        rewinds: u64,
        lost: bool,
    ) {
        let before = self.rewinds.remove(&stream);
        let lost = lost || before.is_some_and(|(.., lost)| lost);
        self.rewinds.insert(stream, (position, rewinds, lost));
    }

    /// The last one counts; what an earlier one was to answer is answered with it.
    pub(super) fn configure(&mut self, config: Config, answers: Option<u64>) {
        let before = match self.configure.take() {
            Some(Command::Configure { answers, .. }) => answers,
            Some(_) | None => None,
        };
        let config = Box::new(config);
        let answers = answers.or(before);
        self.configure = Some(Command::Configure { config, answers });
    }

    /// Passes on what there is room for; the rest when the sources have taken some of it.
    pub(super) fn pass(&mut self, commands: &SyncSender<Command>) -> Result<()> {
        loop {
            let command = match self.rewinds.pop_first() {
                Some((stream, (position, rewinds, lost))) => Command::Rewind {
                    stream,
                    position,
                    rewinds,
                    lost,
                },
                None => match self.configure.take() {
                    Some(configure) => configure,
                    None => return Ok(()),
                },
            };
            match commands.try_send(command) {
                Ok(()) => {}
                Err(TrySendError::Full(Command::Rewind {
                    stream,
                    position,
                    rewinds,
                    lost,
                })) => {
                    self.rewind(stream, position, rewinds, lost);
                    return Ok(());
                }
                Err(TrySendError::Full(configure)) => {
                    self.configure = Some(configure);
                    return Ok(());
                }
                Err(TrySendError::Disconnected(_)) => bail!("the sources ended by themselves"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use scrinium_protocol::identity::{AgentId, Epoch};

    use super::*;

    /// More than the sources listen to at once waits, the last word about each stream, the configuration last.
    #[test]
    fn orders_wait_until_the_sources_listen_and_none_is_lost() {
        let mut orders = Orders::default();
        let stream = |n: u8| StreamId([n; 16]);
        let start = |n: u8| StreamPosition::start(AgentId([9; 16]), stream(n), Epoch([8; 16]));
        for rewinds in 1..=2 {
            for n in 0..5 {
                orders.rewind(stream(n), start(n), rewinds, rewinds == 1);
            }
        }
        // The second is this machine's own, read again, and comes before the first was passed on.
        for answers in [Some(7), None] {
            orders.configure(Config::parse("").unwrap(), answers);
        }
        let (commands, received) = std::sync::mpsc::sync_channel(2);
        let mut told = Vec::new();
        while told.len() < 6 {
            orders.pass(&commands).unwrap();
            let taken: Vec<Command> = received.try_iter().collect();
            assert!((1..=2).contains(&taken.len()));
            told.extend(taken);
        }
        for (n, command) in (0..5).zip(&told) {
            // Something sealed is gone, as the first word said.
            let Command::Rewind {
                stream: of,
                rewinds: 2,
                lost: true,
                ..
            } = command
            else {
                panic!("the stream {n}");
            };
            assert_eq!(*of, stream(n));
        }
        let last = told.last();
        assert!(matches!(
            last,
            Some(Command::Configure {
                answers: Some(7),
                ..
            })
        ));
        assert!(orders.rewinds.is_empty() && orders.configure.is_none());
        drop(received);
        orders.rewind(stream(1), start(1), 3, false);
        assert!(orders.pass(&commands).is_err());
    }
}

//! What a session writes down of what it saw and was told: interference on the way, and answers to a configuration.

use anyhow::Result;
use scrinium_protocol::sl::message::ConfigurationAnswer;
use serde_json::json;
use tracing::warn;

use super::{Effect, Receiver};
use crate::agents::{Answered, News, interference_with};
use crate::alarms::{AlarmKind, Raise};
use crate::said::said;
use crate::silence::ANSWERS;

impl Receiver {
    /// An alarm and an entry of the trail, with what was seen and how far the session had come.
    pub(super) fn note_interference(&mut self, seen: &str) {
        let agent = self.name();
        let stream = self.last.and_then(|(id, next)| {
            let stream = self.shared.archive.stream(id)?;
            Some((stream.name.to_string(), next))
        });
        let (behind, stream, next) = match stream {
            Some((name, next)) => (
                format!(
                    "; the last that came whole is of stream {name}, up to sequence {}",
                    next.saturating_sub(1)
                ),
                Some(name),
                Some(next),
            ),
            None => {
                let streams = self.shared.archive.streams_of(self.agent).into_iter();
                let newest = streams.max_by_key(|stream| stream.last_us);
                let newest = newest.map(|stream| (stream.name.to_string(), stream.position.next.0));
                let behind = match &newest {
                    Some((name, next)) => format!(
                        "; no entry had come in this session, the newest before it is of stream {name}, sequence {}",
                        next.saturating_sub(1)
                    ),
                    None => "; no entry had ever come".to_owned(),
                };
                let (name, next) = newest.unzip();
                (behind, name, next)
            }
        };
        let text = format!("on the way from the agent, {seen}{behind}");
        self.effects
            .push_back(Effect::Raise(interference_with(&agent, &text)));
        let detail =
            json!({ "agent": agent, "seen": seen, "stream": stream, "next_sequence": next });
        // The alarm counts them all; what is over the limit of the day is in the trail in a sum.
        if self.shared.agents.over(self.agent, News::Interference) == 0 {
            let effect = Effect::Audit("interference on the wire", detail);
            self.effects.push_back(effect);
        }
    }

    /// What the agent says of its configuration.
    pub(super) fn note_answer(&mut self, answer: ConfigurationAnswer) -> Result<()> {
        let detail = json!({
            "agent": self.agent.to_string(),
            "version": answer.version,
            "rejected": answer.rejected,
        });
        match self.shared.agents.configured(self.agent, answer)? {
            Answered::Known => {}
            Answered::Written => self.effects.push_back(Effect::Audit("configured", detail)),
            Answered::Counted(count) => self.note_counted(count),
        }
        Ok(())
    }

    /// The agent changed what it says of its configuration once more than is written down.
    fn note_counted(&mut self, count: u64) {
        if count.is_power_of_two() {
            warn!(agent = %self.agent, count, "answers to a configuration were counted and not written down");
        }
        if count == 1 {
            self.effects.push_back(Effect::Raise(Raise {
                kind: AlarmKind::AgentTrouble,
                agent: self.name(),
                text: said!("alarm_text.answers", News::Answers.a_day()),
                key: ANSWERS.to_owned(),
            }));
        }
    }
}

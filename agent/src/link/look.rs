//! Looking for an earlier address of the server while a session goes on at a later one.

use std::time::Instant;

use tokio::task::JoinHandle;

use super::{Dial, Round};

/// At most one look at a time.
#[derive(Debug, Default)]
pub(crate) struct Look {
    task: Option<JoinHandle<Option<usize>>>,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Looked {
    /// It is time to look.
    Due,
    /// The first hop at which the server is, if it is at any.
    Done(Option<usize>),
}

impl Look {
    /// Waits for what the look finds, or without one until `at`. It may be cut short.
    pub(crate) async fn wait(&mut self, at: Option<Instant>) -> Looked {
        if let Some(task) = &mut self.task {
            let found = task.await;
            self.task = None;
            return Looked::Done(found.ok().flatten());
        }
        match at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
        Looked::Due
    }

    /// Looks beside everything else; each attempt has its deadline.
    pub(crate) fn begin(&mut self, dial: Dial, round: Round) {
        self.task = Some(tokio::spawn(dial.find(round)));
    }
}

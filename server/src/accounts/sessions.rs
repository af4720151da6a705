//! Who is signed in: sessions live in memory, a restart signs everybody out.
//!
//! Invariants:
//! 1. A session ends after 15 minutes without an act of a person, and 12 hours after it began. What a page asks by
//!    itself is no act.
//! 2. An account has a bounded number of sessions: one more ends the one that rested longest.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use scrinium_segment::random;
use subtle::ConstantTimeEq as _;

/// Somebody who signed in.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) user: String,
    /// Goes into every form, so that no other site can post in this user's name.
    pub(crate) csrf: String,
    begun_s: u64,
    used_s: u64,
}

impl Session {
    /// Whether a form carries this session's token.
    pub(crate) fn has_csrf(&self, token: &str) -> bool {
        self.csrf.as_bytes().ct_eq(token.as_bytes()).into()
    }

    fn is_over(&self, now_s: u64) -> bool {
        now_s >= self.used_s.saturating_add(IDLE_S) || now_s >= self.begun_s.saturating_add(LIFE_S)
    }
}

/// Who asks with a session's cookie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asker {
    Person,
    /// A page that refreshes itself.
    Page,
}

/// All sessions, by the secret in the cookie.
#[derive(Default)]
pub(super) struct Sessions(BTreeMap<String, Session>);

impl Sessions {
    /// Begins a session; `None` when the system gives no random bytes.
    pub(super) fn begin(&mut self, user: &str, now_s: u64) -> Option<(String, Session)> {
        self.0.retain(|_, session| !session.is_over(now_s));
        let of_user = self.0.iter().filter(|(_, session)| session.user == user);
        if of_user.clone().count() >= SESSIONS_MAX {
            let oldest = of_user.min_by_key(|(_, session)| session.used_s);
            let oldest = oldest.map(|(id, _)| id.clone());
            oldest.and_then(|id| self.0.remove(&id));
        }
        let (id, csrf) = (random::<32>().ok()?, random::<32>().ok()?);
        let session = Session {
            user: user.to_owned(),
            csrf: BASE64URL_NOPAD.encode(&csrf),
            begun_s: now_s,
            used_s: now_s,
        };
        let id = BASE64URL_NOPAD.encode(&id);
        self.0.insert(id.clone(), session.clone());
        Some((id, session))
    }

    /// The session of a cookie, if it lives; a person's use keeps it alive.
    pub(super) fn used(&mut self, id: &str, by: Asker, now_s: u64) -> Option<Session> {
        let session = self.0.get_mut(id)?;
        if session.is_over(now_s) {
            self.0.remove(id);
            return None;
        }
        if by == Asker::Person {
            session.used_s = now_s;
        }
        Some(session.clone())
    }

    pub(super) fn end(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// Ends all sessions of a user.
    pub(super) fn end_all_of(&mut self, user: &str) {
        self.0.retain(|_, session| session.user != user);
    }
}

/// Without an act of a person, seconds.
const IDLE_S: u64 = 15 * 60;
/// From its beginning, seconds.
const LIFE_S: u64 = 12 * 3600;
/// Of one account at the same time.
const SESSIONS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_refreshes_itself_keeps_no_session_alive() {
        let mut sessions = Sessions::default();
        let (id, _) = sessions.begin("admin", 0).unwrap();
        for at_s in (5..IDLE_S).step_by(5) {
            assert!(sessions.used(&id, Asker::Page, at_s).is_some());
        }
        assert!(sessions.used(&id, Asker::Page, IDLE_S).is_none());
        let (id, _) = sessions.begin("admin", 0).unwrap();
        assert!(sessions.used(&id, Asker::Person, IDLE_S - 1).is_some());
        assert!(sessions.used(&id, Asker::Page, IDLE_S + 1).is_some());
    }

    #[test]
    fn a_session_ends_after_twelve_hours_whatever_is_done() {
        let mut sessions = Sessions::default();
        let (id, _) = sessions.begin("admin", 7).unwrap();
        for at_s in (7..7 + LIFE_S).step_by(60) {
            assert!(sessions.used(&id, Asker::Person, at_s).is_some());
        }
        assert!(sessions.used(&id, Asker::Person, 7 + LIFE_S).is_none());
    }

    #[test]
    fn one_more_session_ends_the_one_that_rested_longest() {
        let mut sessions = Sessions::default();
        let (first, _) = sessions.begin("admin", 1).unwrap();
        let (second, _) = sessions.begin("admin", 2).unwrap();
        let (other, _) = sessions.begin("other", 2).unwrap();
        let _used = sessions.used(&first, Asker::Person, 3);
        for _ in 0..SESSIONS_MAX - 1 {
            sessions.begin("admin", 4).unwrap();
        }
        assert!(sessions.used(&second, Asker::Person, 5).is_none());
        assert!(sessions.used(&first, Asker::Person, 5).is_some());
        assert!(sessions.used(&other, Asker::Person, 5).is_some());
    }
}

//! Who may use the console: accounts, their passwords, tries of others, and sessions.
//!
//! ```text
//! name, password, place ─▶ [tries] may it be tried now? ─▶ [hashing] is it right? ─▶ [sessions]
//! cookie of a browser that is known ─▶ [devices] ─▶ a place of its own
//! new password ─▶ [passwords] may it be one? ─▶ [hashing] ─▶ catalogue
//! ```

pub(crate) mod devices;
mod hashing;
mod passwords;
mod sessions;
pub(crate) mod tries;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Result, bail};
use data_encoding::BASE32_NOPAD;
use scrinium_protocol::secret::Secret;
use scrinium_segment::random;
use zeroize::Zeroizing;

use self::devices::Devices;
pub(crate) use self::hashing::PLACES;
use self::sessions::Sessions;
pub(crate) use self::sessions::{Asker, Session};
use self::tries::{Failed, Place, Tries};
use crate::agents::check_account_name;
use crate::bounds::USER_LEN_MAX;
use crate::catalogue::Catalogue;
use crate::catalogue::records::UserRecord;
use crate::clock;
use crate::waits;

/// All accounts and their sessions.
pub(crate) struct Accounts {
    catalogue: Arc<Catalogue>,
    devices: Devices,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: BTreeMap<String, UserRecord>,
    tries: Tries,
    sessions: Sessions,
}

/// Why somebody could not sign in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SignInError {
    Wrong(Failed),
    /// Too many were wrong from there: nothing was looked at.
    TooSoon {
        seconds: u64,
    },
}

impl Accounts {
    /// `device_key` is what browsers are known again by.
    pub(crate) fn load(catalogue: Arc<Catalogue>, device_key: Secret<32>) -> Result<Self> {
        let users = catalogue.load::<UserRecord>()?;
        let state = State {
            users: users
                .into_iter()
                .map(|user| (user.name.clone(), user))
                .collect(),
            ..State::default()
        };
        Ok(Self {
            catalogue,
            devices: Devices::new(device_key),
            state: Mutex::new(state),
        })
    }

    /// Creates an account, or gives an existing one a new password.
    pub(crate) fn set_password(&self, name: &str, password: &str) -> Result<()> {
        // An account of an earlier version keeps its name.
        if !self.lock().users.contains_key(name) {
            self.check_new(name)?;
        }
        passwords::check(name, password)?;
        let password_hash = hashing::hash(password)?;
        let mut state = self.lock();
        let language = state.users.get(name).and_then(|user| user.language.clone());
        let user = UserRecord {
            name: name.to_owned(),
            password_hash,
            language,
            changed_us: clock::unix_us(),
        };
        self.catalogue.put(&user)?;
        state.users.insert(name.to_owned(), user);
        state.sessions.end_all_of(name);
        Ok(())
    }

    /// Whether an account may be called `name`.
    fn check_new(&self, name: &str) -> Result<()> {
        check_account_name(name)?;
        let state = self.lock();
        if let Some(other) = state
            .users
            .keys()
            .find(|user| user.eq_ignore_ascii_case(name))
        {
            bail!("an account named '{other}' exists; choose another name");
        }
        Ok(())
    }

    /// When an account was made or last given a password, Unix µs.
    pub(crate) fn changed_us(&self, name: &str) -> Option<u64> {
        Some(self.lock().users.get(name)?.changed_us)
    }

    /// Checks a password that came from `place`. Takes a moment of CPU: call it off the async threads.
    pub(crate) fn sign_in(
        &self,
        name: &str,
        password: &str,
        place: Place,
    ) -> Result<(String, Session), SignInError> {
        if name.len() > USER_LEN_MAX {
            // No account has such a name: nothing of it is remembered but that somebody tries.
            if let Some(seconds) = self.wait_s("", place) {
                return Err(SignInError::TooSoon { seconds });
            }
            let failed = self.lock().tries.failed_nobody(place, clock::unix_s());
            return Err(SignInError::Wrong(failed));
        }
        if let Some(seconds) = self.wait_s(name, place) {
            return Err(SignInError::TooSoon { seconds });
        }
        let hash = {
            let state = self.lock();
            state.users.get(name).map(|user| user.password_hash.clone())
        };
        // An unknown name costs the same time as a known one.
        let right = hashing::verify(hash.as_deref().unwrap_or(NOBODY), password) && hash.is_some();
        let now_s = clock::unix_s();
        let mut state = self.lock();
        if !right {
            return Err(SignInError::Wrong(state.tries.failed(place, name, now_s)));
        }
        // The password was changed while this one was compared: it is no longer known to be right.
        if state.users.get(name).map(|user| &user.password_hash) != hash.as_ref() {
            return Err(SignInError::TooSoon { seconds: 1 });
        }
        state.tries.succeeded(place, name);
        let begun = state.sessions.begin(name, now_s);
        begun.ok_or(SignInError::TooSoon { seconds: 1 })
    }

    /// How long a try from there has to wait, if it has to.
    pub(crate) fn wait_s(&self, name: &str, place: Place) -> Option<u64> {
        let wait_s = self.lock().tries.wait_s(place, name, clock::unix_s());
        (wait_s > 0).then_some(wait_s)
    }

    /// Where a try of `name` comes from, when its browser shows that the account signed in there before.
    pub(crate) fn known_place(&self, name: &str, cookie: &str) -> Option<Place> {
        let state = self.lock();
        let user = state.users.get(name)?;
        self.devices.place(user, cookie, clock::unix_s())
    }

    /// The cookie of the browser in which `name` signed in from `place` just now.
    pub(crate) fn device_cookie(&self, name: &str, place: Place) -> Option<String> {
        let state = self.lock();
        let user = state.users.get(name)?;
        self.devices.cookie(user, place, clock::unix_s())
    }

    /// The session of a cookie, if it lives; using it keeps it alive, when a person does.
    pub(crate) fn session(&self, id: &str, by: Asker) -> Option<Session> {
        self.lock().sessions.used(id, by, clock::unix_s())
    }

    pub(crate) fn sign_out(&self, id: &str) {
        self.lock().sessions.end(id);
    }

    /// The language a user chose before.
    pub(crate) fn language(&self, name: &str) -> Option<String> {
        self.lock().users.get(name)?.language.clone()
    }

    /// Remembers a user's language.
    pub(crate) fn set_language(&self, name: &str, language: &str) -> Result<()> {
        let mut state = self.lock();
        if let Some(user) = state.users.get_mut(name) {
            user.language = Some(language.to_owned());
            self.catalogue.put(user)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        waits::lock(&self.state)
    }
}

/// Whether `password` may be that of the account `name`.
pub(crate) fn check_password(name: &str, password: &str) -> Result<()> {
    passwords::check(name, password)
}

/// A password nobody has to think of: 100 bits.
pub(crate) fn random_password() -> Result<Zeroizing<String>> {
    let bytes: [u8; 13] = random()?;
    let text = BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
    let groups: Vec<&str> = text
        .as_bytes()
        .chunks(5)
        .take(4)
        .filter_map(|group| str::from_utf8(group).ok())
        .collect();
    Ok(Zeroizing::new(groups.join("-")))
}

/// The purpose of the key that browsers are known again by.
pub(crate) const BROWSERS_KEY: &str = "browsers of accounts";
/// A hash no password has, of the default cost.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_passwords_from_one_place_lock_that_place_out_and_nobody_else() {
        let accounts = accounts("lock");
        let (stranger, home) = (place("203.0.113.7"), place("192.0.2.1"));
        let wrong = || accounts.sign_in("admin", "wrong password", stranger).err();
        for _ in 0..3 {
            assert!(matches!(wrong(), Some(SignInError::Wrong(_))));
        }
        let too_soon = |error| matches!(error, Some(SignInError::TooSoon { .. }));
        assert!(too_soon(wrong()));
        let right = |from| accounts.sign_in("admin", "right password", from).err();
        assert!(too_soon(right(stranger)));
        assert!(right(home).is_none());
        // A browser that is known waits for nothing that others do at its address.
        let cookie = accounts.device_cookie("admin", home).unwrap();
        let browser = accounts.known_place("admin", &cookie).unwrap();
        assert!(right(browser).is_none());
        assert!(accounts.known_place("other", &cookie).is_none());
        assert!(accounts.known_place("nobody", &cookie).is_none());
        accounts.set_password("admin", "another password").unwrap();
        assert!(accounts.known_place("admin", &cookie).is_none());
    }

    #[test]
    fn a_session_ends_with_sign_out_or_a_new_password() {
        let accounts = accounts("session");
        let (id, session) = accounts
            .sign_in("admin", "right password", Place::Local)
            .unwrap();
        assert!(session.has_csrf(&session.csrf) && !session.has_csrf(""));
        assert!(accounts.session(&id, Asker::Person).is_some());
        accounts.set_password("admin", "another password").unwrap();
        assert!(accounts.session(&id, Asker::Person).is_none());
        assert!(accounts.set_password("admin", "short").is_err());
        assert!(accounts.set_password("admin", "Password1234").is_err());
    }

    fn place(address: &str) -> Place {
        Place::of(address.parse().unwrap())
    }

    fn accounts(name: &str) -> Accounts {
        let path = std::env::temp_dir().join(format!(
            "scrinium-accounts-{name}-{}.db",
            std::process::id()
        ));
        drop(std::fs::remove_file(&path));
        let catalogue = Catalogue::create(&path, &Secret::new([1; 32])).unwrap();
        let accounts = Accounts::load(Arc::new(catalogue), Secret::new([2; 32])).unwrap();
        accounts.set_password("admin", "right password").unwrap();
        accounts.set_password("other", "right password").unwrap();
        accounts
    }
}

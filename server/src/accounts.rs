//! Who may use the console: passwords, lock-out and sessions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow, bail};
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use scrinium_segment::random;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::agents::check_account_name;
use crate::bounds::NAME_LEN_MAX;
use crate::catalogue::Catalogue;
use crate::catalogue::records::UserRecord;
use crate::clock;

/// All accounts and their sessions. Sessions live in memory: a restart signs everybody out.
pub(crate) struct Accounts {
    catalogue: Arc<Catalogue>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: BTreeMap<String, UserRecord>,
    failures: BTreeMap<String, Failures>,
    sessions: BTreeMap<String, Session>,
}

#[derive(Clone, Copy, Default)]
struct Failures {
    count: u32,
    locked_until_s: u64,
}

/// Somebody who signed in.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) user: String,
    /// Goes into every form, so that no other site can post in this user's name.
    pub(crate) csrf: String,
    used_s: u64,
}

/// Why somebody could not sign in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SignInError {
    Wrong,
    Locked { minutes: u64 },
}

impl Accounts {
    pub(crate) fn load(catalogue: Arc<Catalogue>) -> Result<Self> {
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
            state: Mutex::new(state),
        })
    }

    /// Creates an account, or gives an existing one a new password.
    pub(crate) fn set_password(&self, name: &str, password: &str) -> Result<()> {
        // An account of an earlier version keeps its name.
        if !self.lock().users.contains_key(name) {
            self.check_new(name)?;
        }
        if password.chars().count() < PASSWORD_LEN_MIN {
            bail!("the password must have at least {PASSWORD_LEN_MIN} characters");
        }
        let password_hash = hash(password)?;
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
        state.failures.remove(name);
        state.sessions.retain(|_, session| session.user != name);
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

    /// Checks a password. Ten wrong ones in a row lock the account for a quarter of an hour, the
    /// right password included. Takes a moment of CPU: call it off the async threads.
    pub(crate) fn sign_in(
        &self,
        name: &str,
        password: &str,
    ) -> Result<(String, Session), SignInError> {
        if name.len() > NAME_LEN_MAX {
            return Err(SignInError::Wrong);
        }
        let (hash, failures) = {
            let state = self.lock();
            let failures = state.failures.get(name).copied().unwrap_or_default();
            (
                state.users.get(name).map(|user| user.password_hash.clone()),
                failures,
            )
        };
        let now = clock::unix_s();
        if failures.locked_until_s > now {
            let minutes = (failures.locked_until_s - now).div_ceil(60);
            return Err(SignInError::Locked { minutes });
        }
        // An unknown name costs the same time as a known one.
        let right = verify(hash.as_deref().unwrap_or(NOBODY), password) && hash.is_some();
        let mut state = self.lock();
        if !right {
            if state.failures.len() >= FAILURES_MAX {
                state.failures.clear();
            }
            let failures = state.failures.entry(name.to_owned()).or_default();
            failures.count += 1;
            if failures.count >= WRONG_MAX {
                *failures = Failures {
                    count: 0,
                    locked_until_s: now + LOCK_S,
                };
                return Err(SignInError::Locked {
                    minutes: LOCK_S / 60,
                });
            }
            return Err(SignInError::Wrong);
        }
        state.failures.remove(name);
        state
            .sessions
            .retain(|_, session| now < session.used_s + IDLE_S);
        let (Ok(id), Ok(csrf)) = (random::<32>(), random::<32>()) else {
            return Err(SignInError::Wrong);
        };
        let session = Session {
            user: name.to_owned(),
            csrf: BASE64URL_NOPAD.encode(&csrf),
            used_s: now,
        };
        let id = BASE64URL_NOPAD.encode(&id);
        state.sessions.insert(id.clone(), session.clone());
        Ok((id, session))
    }

    /// The session of a cookie, if it lives; using it keeps it alive.
    pub(crate) fn session(&self, id: &str) -> Option<Session> {
        let now = clock::unix_s();
        let mut state = self.lock();
        let session = state.sessions.get_mut(id)?;
        if now >= session.used_s + IDLE_S {
            state.sessions.remove(id);
            return None;
        }
        session.used_s = now;
        Some(session.clone())
    }

    pub(crate) fn sign_out(&self, id: &str) {
        self.lock().sessions.remove(id);
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Whether a form carries this session's token.
    pub(crate) fn has_csrf(&self, token: &str) -> bool {
        self.csrf.as_bytes().ct_eq(token.as_bytes()).into()
    }
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

fn hash(password: &str) -> Result<String> {
    let salt: [u8; 16] = random()?;
    let hash = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
    Ok(hash
        .map_err(|error| anyhow!("hashing the password: {error}"))?
        .to_string())
}

fn verify(hash: &str, password: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        return false;
    };
    Argon2::default()
        .verify_password(password.as_bytes(), &hash)
        .is_ok()
}

const PASSWORD_LEN_MIN: usize = 12;
const WRONG_MAX: u32 = 10;
const LOCK_S: u64 = 15 * 60;
const IDLE_S: u64 = 15 * 60;
/// Names whose failures are remembered; somebody who tries more starts over.
const FAILURES_MAX: usize = 10_000;
/// A hash no password has, of the default cost.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_wrong_passwords_lock_the_account_and_only_that_one() {
        let accounts = accounts("lock");
        for _ in 0..9 {
            assert_eq!(
                accounts.sign_in("admin", "wrong password").err(),
                Some(SignInError::Wrong)
            );
        }
        let locked = Some(SignInError::Locked { minutes: 15 });
        assert_eq!(accounts.sign_in("admin", "wrong password").err(), locked);
        assert_eq!(accounts.sign_in("admin", "right password").err(), locked);
        assert!(accounts.sign_in("other", "right password").is_ok());
    }

    #[test]
    fn a_session_ends_with_sign_out_or_a_new_password() {
        let accounts = accounts("session");
        let (id, session) = accounts.sign_in("admin", "right password").unwrap();
        assert!(session.has_csrf(&session.csrf) && !session.has_csrf(""));
        assert!(accounts.session(&id).is_some());
        accounts.set_password("admin", "another password").unwrap();
        assert!(accounts.session(&id).is_none());
        assert!(accounts.set_password("admin", "short").is_err());
    }

    fn accounts(name: &str) -> Accounts {
        let path = std::env::temp_dir().join(format!(
            "scrinium-accounts-{name}-{}.db",
            std::process::id()
        ));
        drop(std::fs::remove_file(&path));
        let catalogue =
            Catalogue::create(&path, &scrinium_protocol::secret::Secret::new([1; 32])).unwrap();
        let accounts = Accounts::load(Arc::new(catalogue)).unwrap();
        accounts.set_password("admin", "right password").unwrap();
        accounts.set_password("other", "right password").unwrap();
        accounts
    }
}

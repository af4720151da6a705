//! Browsers in which an account signed in before: each holds a cookie that says so, and the server holds nothing.
//!
//! ```text
//! sign-in ─▶ cookie: when (8) | which browser (16) | HMAC-SHA-256 (32) ─▶ a later try ─▶ [Place::Device]
//! ```
//!
//! The cookie lets nobody in: it only keeps its browser from waiting for what others do at the same address. The HMAC is
//! over the account and its last change too, so that it is of one account and ends with its password.

use data_encoding::BASE64URL_NOPAD;
use scrinium_protocol::kdf::hmac_sha256;
use scrinium_protocol::secret::Secret;
use scrinium_segment::random;
use subtle::ConstantTimeEq as _;

use super::tries::Place;
use crate::catalogue::records::UserRecord;

/// Makes cookies, and knows them again.
pub(super) struct Devices(Secret<32>);

impl Devices {
    pub(super) fn new(key: Secret<32>) -> Self {
        Self(key)
    }

    /// The cookie of a browser in which `user` signed in just now: of the one that it was before, if it was known.
    /// `None` when the system gives no random bytes.
    pub(super) fn cookie(&self, user: &UserRecord, place: Place, now_s: u64) -> Option<String> {
        let device = match place {
            Place::Device(device) => device,
            Place::Local | Place::V4(_) | Place::V6(_) => random().ok()?,
        };
        let mac = self.mac(user, now_s, &device);
        let cookie = [&now_s.to_be_bytes()[..], &device, &mac].concat();
        Some(BASE64URL_NOPAD.encode(&cookie))
    }

    /// The browser that shows a cookie, if it is one of `user`'s.
    pub(super) fn place(&self, user: &UserRecord, cookie: &str, now_s: u64) -> Option<Place> {
        if cookie.len() != COOKIE_LEN {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(cookie.as_bytes()).ok()?;
        let (made_s, rest) = bytes.split_first_chunk::<8>()?;
        let (device, mac) = rest.split_first_chunk::<16>()?;
        let made_s = u64::from_be_bytes(*made_s);
        let is_ours: bool = self.mac(user, made_s, device).ct_eq(mac).into();
        let is_over = now_s >= made_s.saturating_add(LIFE_S);
        (is_ours && !is_over).then_some(Place::Device(*device))
    }

    fn mac(&self, user: &UserRecord, made_s: u64, device: &[u8; 16]) -> [u8; 32] {
        let parts = [
            &b"scrinium device v1"[..],
            &made_s.to_be_bytes(),
            device,
            &user.changed_us.to_be_bytes(),
            user.name.as_bytes(),
        ];
        hmac_sha256(self.0.expose(), &parts)
    }
}

/// How long a browser is known after the last sign-in, seconds: a quarter of a year, and a holiday.
pub(crate) const LIFE_S: u64 = 100 * 86_400;
/// 56 bytes in Base64.
const COOKIE_LEN: usize = 75;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_of_one_account_until_its_password_changes_or_its_time_is_over() {
        let devices = Devices::new(Secret::new([1; 32]));
        let (admin, other) = (user("admin", 5), user("other", 5));
        let address = Place::V4([192, 0, 2, 1]);
        let cookie = devices.cookie(&admin, address, 100).unwrap();
        let known = devices.place(&admin, &cookie, 101).expect("it is known");
        assert!(known.is_known() && !address.is_known());
        assert_eq!(devices.place(&other, &cookie, 101), None);
        assert_eq!(devices.place(&user("admin", 6), &cookie, 101), None);
        assert_eq!(devices.place(&admin, &cookie, 100 + LIFE_S), None);
        let stranger = Devices::new(Secret::new([2; 32]));
        assert_eq!(stranger.place(&admin, &cookie, 101), None);
        // Signed in again, it is the same browser for longer.
        let again = devices.cookie(&admin, known, 200).unwrap();
        assert_eq!(devices.place(&admin, &again, 100 + LIFE_S), Some(known));
        // Whatever else is shown is no cookie.
        for at in 0..COOKIE_LEN {
            let mut altered = cookie.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(devices.place(&admin, &altered, 101), None, "{at}");
        }
        for odd in ["", "x", &"é".repeat(COOKIE_LEN), &"A".repeat(COOKIE_LEN)] {
            assert_eq!(devices.place(&admin, odd, 101), None);
        }
    }

    fn user(name: &str, changed_us: u64) -> UserRecord {
        UserRecord {
            name: name.to_owned(),
            password_hash: String::new(),
            language: None,
            changed_us,
        }
    }
}

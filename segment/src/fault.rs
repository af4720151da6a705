//! Named places between two durable steps, at which a test may end the process.
//!
//! `SCRINIUM_FAULT="NAME"` ends a process of a debug build the first time it passes the point of that
//! name, as `kill -9` would: no destructor, no flush. `NAME#3` the third time. Builds for release have
//! no fault points.

/// Passes the point called `name`.
pub fn point(name: &'static str) {
    #[cfg(debug_assertions)]
    armed::pass(name);
    #[cfg(not(debug_assertions))]
    let _absent_in_release = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// The point to die at, and how often it may be passed before.
    static ARMED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();

    pub(super) fn pass(name: &str) {
        let armed = ARMED.get_or_init(|| {
            let text = std::env::var("SCRINIUM_FAULT").ok()?;
            let (name, times) = text.split_once('#').unwrap_or((&text, "1"));
            Some((name.to_owned(), AtomicU32::new(times.parse().ok()?)))
        });
        if let Some((armed, left)) = armed
            && armed == name
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            std::process::abort();
        }
    }
}

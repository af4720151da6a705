//! Named places between two durable steps, at which a test may end the process.
//!
//! `SCRINIUM_FAULT="NAME"` ends a process of a debug build the first time it passes the point of that
//! name, as `kill -9` would: no destructor, no flush. `NAME#3` the third time, `NAME|OTHER` at each of them.
//! `SCRINIUM_PANIC` panics there instead, and `SCRINIUM_HANG` lets the thread go no further, as a file system does
//! that does not answer. A simulation is told of every point its thread passes instead ([`listen`]). Builds for release have no
//! fault points.

/// Passes the point called `name`.
pub fn point(name: &'static str) {
    #[cfg(debug_assertions)]
    if !listening::pass(name) {
        armed::pass(name);
    }
    #[cfg(not(debug_assertions))]
    let _absent_in_release = name;
}

/// What a simulation does at a point: it may end its process by a panic.
#[cfg(debug_assertions)]
pub type Listener = Box<dyn FnMut(&'static str)>;

/// Tells `listener` of every point this thread passes from now on; `None` for nobody.
#[cfg(debug_assertions)]
pub fn listen(listener: Option<Listener>) {
    listening::set(listener);
}

#[cfg(debug_assertions)]
mod listening {
    use std::cell::RefCell;

    thread_local! {
        static LISTENER: RefCell<Option<super::Listener>> = const { RefCell::new(None) };
    }

    pub(super) fn set(listener: Option<super::Listener>) {
        LISTENER.with_borrow_mut(|slot| *slot = listener);
    }

    /// Returns whether somebody listens.
    pub(super) fn pass(name: &'static str) -> bool {
        // Taken out while it runs: it may panic.
        let Some(mut listener) = LISTENER.with_borrow_mut(Option::take) else {
            return false;
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| listener(name)));
        LISTENER.with_borrow_mut(|slot| *slot = Some(listener));
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        true
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Points to die at, and how often each may be passed before.
    type Armed = OnceLock<Vec<(String, AtomicU32)>>;

    static ENDS: Armed = OnceLock::new();
    static PANICS: Armed = OnceLock::new();
    static HANGS: Armed = OnceLock::new();

    pub(super) fn pass(name: &str) {
        if is_due(&ENDS, "SCRINIUM_FAULT", name) {
            std::process::abort();
        }
        if is_due(&PANICS, "SCRINIUM_PANIC", name) {
            std::panic::panic_any("a test wants a panic here");
        }
        if is_due(&HANGS, "SCRINIUM_HANG", name) {
            loop {
                std::thread::park();
            }
        }
    }

    fn is_due(armed: &Armed, variable: &str, name: &str) -> bool {
        let armed = armed.get_or_init(|| {
            let text = std::env::var(variable).unwrap_or_default();
            let points = text.split('|').filter_map(|point| {
                let (name, times) = point.split_once('#').unwrap_or((point, "1"));
                Some((name.to_owned(), AtomicU32::new(times.parse().ok()?)))
            });
            points.collect()
        });
        armed
            .iter()
            .any(|(armed, left)| armed == name && left.fetch_sub(1, Ordering::Relaxed) == 1)
    }
}

//! What the operating system says of its clocks: the binding to it, and the only `unsafe` of the server.

#![expect(
    unsafe_code,
    reason = "no safe wrapper reads the kernel's state of synchronisation"
)]

use std::sync::OnceLock;

/// µs since the machine was started, the time it slept included; in a time namespace too.
pub(super) fn boot_us() -> u64 {
    raw_boot_us().saturating_add_signed(offset_us().saturating_neg())
}

/// By how much the boot time of this process is moved: whoever starts a program may give it another one. Where that
/// cannot be read there are no such namespaces.
fn offset_us() -> i64 {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        parse_offset(&text)
    })
}

/// The offset of boot time, from lines of clock, seconds and nanoseconds.
fn parse_offset(text: &str) -> i64 {
    let mut offsets = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        // Older kernels give the number of the clock.
        words
            .next()
            .filter(|&clock| clock == "boottime" || clock == "7")?;
        let seconds: i64 = words.next()?.parse().ok()?;
        let nanoseconds: i64 = words.next()?.parse().ok()?;
        Some(
            seconds
                .saturating_mul(1_000_000)
                .saturating_add(nanoseconds / 1000),
        )
    });
    offsets.next().unwrap_or(0)
}

fn raw_boot_us() -> u64 {
    // macOS counts the time asleep in this one too.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of our own, which the call fills or leaves alone.
    let outcome = unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
    if outcome != 0 {
        return 0;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000)
        .saturating_add(nanoseconds / 1000)
}

/// Whether somebody keeps the wall clock right, as the kernel knows it; none where it is not told.
#[cfg(target_os = "linux")]
pub(super) fn synchronised() -> Option<bool> {
    // SAFETY: a timex is numbers only, for which zeros are values; with no mode set nothing is changed.
    let mut state: libc::timex = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a timex of our own, which the call fills or leaves alone.
    let outcome = unsafe { libc::adjtimex(&raw mut state) };
    // A sandbox may forbid the question.
    (outcome != -1).then_some(state.status & libc::STA_UNSYNC == 0)
}

/// The same where no kernel says it.
#[cfg(not(target_os = "linux"))]
pub(super) fn synchronised() -> Option<bool> {
    None
}

/// Names this run of the machine; where the system gives no name, this run of the program.
pub(super) fn run_of_the_machine() -> &'static str {
    static RUN: OnceLock<String> = OnceLock::new();
    RUN.get_or_init(|| {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let read = read.map(|text| text.trim().to_owned());
        read.ok()
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| {
                let random = scrinium_segment::random::<16>().unwrap_or_default();
                data_encoding::HEXLOWER.encode(&random)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace_is_read_in_both_forms() {
        assert_eq!(
            parse_offset("monotonic           0         0\nboottime       300000   5000000\n"),
            300_000_005_000
        );
        assert_eq!(parse_offset("1 0 0\n7 -60 0\n"), -60_000_000);
        assert_eq!(parse_offset(""), 0);
        assert_eq!(parse_offset("boottime x y"), 0);
    }
}

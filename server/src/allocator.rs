//! Memory that was needed once goes back to the system: the binding to the C library's allocator.

#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(
        unsafe_code,
        reason = "no safe wrapper asks the allocator to give memory back, or for fewer arenas"
    )
)]

/// Lets at most two arenas for each processor come to be, not eight: what one holds free, a thread of another cannot have,
/// and the threads that answer requests come and go. Before other threads are there.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn share_arenas() {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let arenas = i32::try_from(processors.saturating_mul(2)).unwrap_or(i32::MAX);
    // SAFETY: the call takes two numbers, and no thread but this one is there.
    let _whether_taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
}

/// The same where there are no arenas.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn share_arenas() {}

/// Gives free memory back. The allocator keeps what many threads freed, else, and the next thread may not reuse it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back() {
    // SAFETY: the call takes a number, and may be made at any time from any thread.
    let _whether_any = unsafe { libc::malloc_trim(0) };
}

/// The same where the allocator does so by itself.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

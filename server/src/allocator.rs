//! Memory that was needed once goes back to the system: the binding to the C library's allocator.

#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(
        unsafe_code,
        reason = "no safe wrapper asks the allocator to give memory back"
    )
)]

/// Gives free memory back. The allocator keeps what many threads freed, else, and the next thread may not reuse it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back() {
    // SAFETY: the call takes a number, and may be made at any time from any thread.
    let _whether_any = unsafe { libc::malloc_trim(0) };
}

/// The same where the allocator does so by itself.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

//! Makes glibc give large blocks back to the system when they are freed (decision 31).

/// Begins anew with that variable, in the same process. Does nothing where it is set, or where this cannot be done:
/// then some memory more is resident. Before anything is read or opened.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn give_back_what_is_freed() {
    use std::os::unix::process::CommandExt;

    // Blocks from so many bytes on are mapped alone, and unmapped when they are freed.
    const MAPPED_FROM_BYTES: &str = "131072";
    // What glibc reads at the start of a process. Setting it switches off that the limit grows with what is freed.
    const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";
    // The other way to set it. Whoever uses it has a reason.
    const TUNABLES: &str = "GLIBC_TUNABLES";
    // The program's own name: under a loader or an emulator the running file is that, and takes other arguments.
    const PROGRAM: &str = "perennial";

    if std::env::var_os(VARIABLE).is_some() || std::env::var_os(TUNABLES).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    if program.file_name().is_none_or(|name| name != PROGRAM) {
        return;
    }
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new(&program);
    if let Some(called) = arguments.next() {
        again.arg0(called);
    }
    // Returns only where it failed.
    let _ = again
        .args(arguments)
        .env(VARIABLE, MAPPED_FROM_BYTES)
        .exec();
}

/// Other systems' allocators do so by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn give_back_what_is_freed() {}

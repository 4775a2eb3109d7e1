//! The filter of system calls that is installed in every child; `filter/rules.rs` says what is in it.

use seccompiler::sock_filter;

// `PROGRAMS`, in the order in which they are installed; written by the build.
include!(concat!(env!("OUT_DIR"), "/filter.rs"));

/// Installs it in the calling thread, for ever and for all its children; sets no-new-privileges.
pub fn install() -> std::io::Result<()> {
    for program in PROGRAMS {
        seccompiler::apply_filter(program).map_err(|error| match error {
            seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
            _ => std::io::ErrorKind::InvalidInput.into(),
        })?;
    }
    Ok(())
}

//! A program as a service of systemd (systemd.service(5), sysusers.d(5)): writes its unit and its user, starts it, and
//! takes both away again. What the unit says is the program's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::durable;

/// A service.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its unit, `NAME.service`.
    pub unit: &'static str,
    /// Where the unit and what makes its user stand.
    pub unit_path: &'static str,
    pub users_path: &'static str,
    /// What makes its user, sysusers.d(5).
    pub users: &'static str,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("'{0}' cannot stand in a unit: move the program to a path without spaces and signs")]
    Program(String),
    #[error("creating {path}: {error}", path = .0.display(), error = .1)]
    Creating(PathBuf, std::io::Error),
    #[error("writing {path}: {error}", path = .0.display(), error = .1)]
    Writing(PathBuf, std::io::Error),
    #[error("removing {path}: {error}", path = .0.display(), error = .1)]
    Removing(PathBuf, std::io::Error),
    #[error("running {0}; is it installed? {1}")]
    Running(String, std::io::Error),
    #[error("{0}: {1}")]
    Said(String, String),
}

/// The path of a program, if it can stand in a unit.
///
/// # Errors
/// It holds what a unit reads otherwise.
pub fn program(path: &Path) -> Result<&str, Problem> {
    let has_signs =
        |text: &str| text.contains(|c: char| c.is_whitespace() || "\"'\\%$".contains(c));
    path.to_str()
        .filter(|text| !has_signs(text))
        .ok_or_else(|| Problem::Program(path.display().to_string()))
}

impl Service {
    /// Writes unit and user; below `root`, of an image that is built, nothing is started. Returns the files.
    ///
    /// # Errors
    /// A file cannot be written, or the system's tools refuse.
    pub fn install(&self, text: &str, root: Option<&Path>) -> Result<[PathBuf; 2], Problem> {
        let files = [
            (below(root, self.unit_path), text),
            (below(root, self.users_path), self.users),
        ];
        for (path, text) in &files {
            let dir = path.parent().unwrap_or_else(|| Path::new("/"));
            std::fs::create_dir_all(dir)
                .map_err(|error| Problem::Creating(dir.to_owned(), error))?;
            durable::write_file(path, text.as_bytes())
                .and_then(|()| make_readable(path))
                .map_err(|error| Problem::Writing(path.clone(), error))?;
        }
        if root.is_none() {
            system("systemd-sysusers", &[self.users_path])?;
            system("systemctl", &["daemon-reload"])?;
            system("systemctl", &["enable", "--now", self.unit])?;
        }
        Ok(files.map(|(path, _)| path))
    }

    /// Stops it and removes unit and user's file; its state stays.
    ///
    /// # Errors
    /// A file cannot be removed, or the system's tools refuse.
    pub fn uninstall(&self, root: Option<&Path>) -> Result<(), Problem> {
        if root.is_none() {
            system("systemctl", &["disable", "--now", self.unit])?;
        }
        for path in [self.unit_path, self.users_path] {
            let path = below(root, path);
            let removed = match path.try_exists() {
                Ok(false) => Ok(()),
                Ok(true) | Err(_) => durable::remove(&path),
            };
            removed.map_err(|error| Problem::Removing(path, error))?;
        }
        if root.is_none() {
            system("systemctl", &["daemon-reload"])?;
        }
        Ok(())
    }

    /// Starts it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn start(&self) -> Result<(), Problem> {
        system("systemctl", &["start", self.unit])
    }

    /// Stops it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn stop(&self) -> Result<(), Problem> {
        system("systemctl", &["stop", self.unit])
    }
}

/// A path below the root of an image, or of this system.
#[must_use]
pub fn below(root: Option<&Path>, path: &str) -> PathBuf {
    let root = root.unwrap_or_else(|| Path::new("/"));
    root.join(path.trim_start_matches('/'))
}

/// Runs a tool of the system; its own words are the error.
///
/// # Errors
/// It is not there, or fails.
pub fn system(program: &str, words: &[&str]) -> Result<(), Problem> {
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| Problem::Running(program.to_owned(), error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Problem::Said(
            format!("{program} {}", words.join(" ")),
            said,
        ));
    }
    Ok(())
}

/// Everybody may read how a service is run.
fn make_readable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_a_unit_reads_otherwise_is_refused() {
        for path in [
            "/opt/my programs/x",
            "/opt/100%/x",
            "/opt/$HOME",
            "/a'b",
            "/a\\b",
        ] {
            assert!(program(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(program(Path::new("/usr/bin/x")).unwrap(), "/usr/bin/x");
    }
}

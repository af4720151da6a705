//! Where a backup lies.
//!
//! ```text
//! objects ─▶ Target ─▶ /DIR                              a directory, which may be a mounted one
//!                      s3://BUCKET[/PREFIX]              a bucket
//!                      sftp://[USER@]HOST[:PORT]/DIR     a directory of another machine
//! ```
//!
//! Invariant: an object is whole under its name, or not there.

mod bounded;
mod bucket;
mod directory;
mod remote;

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Uri;
use tokio::runtime::Runtime;

use self::bucket::Bucket;
use self::directory::Directory;
use self::remote::Remote;

/// The name of a place, as a command line or the configuration has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Location {
    Directory(PathBuf),
    Bucket {
        bucket: String,
        prefix: String,
    },
    Remote {
        user: Option<String>,
        host: String,
        port: Option<u16>,
        dir: PathBuf,
    },
}

impl Location {
    /// Reads what a person wrote.
    ///
    /// # Errors
    /// It is none of the three kinds.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if !text.contains("://") {
            let dir = PathBuf::from(text);
            ensure!(
                dir.is_absolute(),
                "'{text}' must be an absolute path, s3://BUCKET[/PREFIX] or sftp://[USER@]HOST[:PORT]/DIR"
            );
            return Ok(Self::Directory(dir));
        }
        let uri: Uri = text.parse().with_context(|| format!("'{text}'"))?;
        let authority = uri.authority().with_context(|| format!("'{text}'"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        ensure!(uri.query().is_none(), "'{text}' must not have a query");
        match uri.scheme_str() {
            Some("s3") => {
                ensure!(
                    authority.as_str() == host && !host.is_empty(),
                    "'{text}' must be s3://BUCKET[/PREFIX]"
                );
                let prefix = uri.path().trim_matches('/').to_owned();
                Ok(Self::Bucket {
                    bucket: host,
                    prefix,
                })
            }
            Some("sftp") => {
                let user = authority.as_str().rsplit_once('@');
                let user = user.map(|(user, _)| user.to_owned());
                // Both become words of a command line.
                let is_word = |word: &str| !word.is_empty() && !word.starts_with('-');
                ensure!(
                    is_word(&host) && user.as_deref().is_none_or(is_word) && uri.path().len() > 1,
                    "'{text}' must be sftp://[USER@]HOST[:PORT]/DIR"
                );
                Ok(Self::Remote {
                    user,
                    host,
                    port: authority.port_u16(),
                    dir: PathBuf::from(uri.path()),
                })
            }
            _ => bail!(
                "'{text}' must be an absolute path, s3://BUCKET[/PREFIX] or sftp://[USER@]HOST[:PORT]/DIR"
            ),
        }
    }

    /// Whether a file of this machine lies in it.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        matches!(self, Self::Directory(dir) if path.starts_with(dir))
    }
}

impl Display for Location {
    fn fmt(&self, f: &mut Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Directory(dir) => write!(f, "{}", dir.display()),
            Self::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Remote { host, dir, .. } => write!(f, "sftp://{host}{}", dir.display()),
        }
    }
}

/// Keeps objects.
trait Place: Send {
    /// What lies below `prefix`, with its length.
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>>;
    /// Copies a file there; durable when this returns. What was there is replaced.
    fn put(&self, name: &str, from: &Path) -> Result<()>;
    /// Hands over the bytes of an object.
    fn read(&self, name: &str, sink: &mut dyn Write) -> Result<()>;
    /// Removes an object; none is as good.
    fn remove(&self, name: &str) -> Result<()>;
}

/// A place for objects that are written once.
pub(crate) struct Target {
    place: Box<dyn Place>,
}

impl Target {
    /// Goes there. It waits for what is elsewhere: not to be called where others must not wait.
    ///
    /// # Errors
    /// The location is none, or cannot be reached.
    pub(crate) fn open(location: &Location) -> Result<Self> {
        let place: Box<dyn Place> = match location {
            Location::Directory(dir) => Box::new(Directory::new(dir.clone())),
            Location::Bucket { bucket, prefix } => Box::new(Bucket::open(bucket, prefix)?),
            Location::Remote {
                user,
                host,
                port,
                dir,
            } => Box::new(Remote::open(user.as_deref(), host, *port, dir)?),
        };
        Ok(Self { place })
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let found = self.place.list(prefix);
        found.with_context(|| format!("listing {prefix}/ of the backup"))
    }

    /// Copies a file there; durable when this returns.
    pub(crate) fn put(&self, name: &str, from: &Path) -> Result<()> {
        let put = self.place.put(name, from);
        put.with_context(|| format!("writing {name} to the backup"))
    }

    /// Copies an object from there; the file is whole when this returns.
    pub(crate) fn get(&self, name: &str, to: &Path) -> Result<()> {
        directory::replace(to, |file| self.read(name, file))
    }

    /// Hands over the bytes of an object.
    pub(crate) fn read(&self, name: &str, sink: &mut dyn Write) -> Result<()> {
        let read = self.place.read(name, sink);
        read.with_context(|| format!("reading {name} of the backup"))
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let removed = self.place.remove(name);
        removed.with_context(|| format!("removing {name} from the backup"))
    }
}

/// Copies a file on this machine; what was there is replaced when the whole is durable.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    directory::copy(from, to)
}

/// What is elsewhere is waited for here: whoever makes a backup does nothing else.
fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Refuses a list that goes on without an end.
fn check_listed(count: usize) -> Result<()> {
    ensure!(
        count <= LISTED_MAX,
        "it lists more than {LISTED_MAX} objects"
    );
    Ok(())
}

/// Objects below one name: segments of many years. Some 200 MiB, while a backup is made.
const LISTED_MAX: usize = 1_000_000;
/// Ends the names of what is not whole yet.
const PART: &str = ".part";
const COPY_LEN: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_one_of_three_kinds() {
        let remote = |user: Option<&str>, host: &str, port| Location::Remote {
            user: user.map(str::to_owned),
            host: host.into(),
            port,
            dir: "/srv/b".into(),
        };
        let bucket = |prefix: &str| Location::Bucket {
            bucket: "logs".into(),
            prefix: prefix.into(),
        };
        for (text, location) in [
            ("/mnt/nas", Location::Directory("/mnt/nas".into())),
            ("s3://logs", bucket("")),
            ("s3://logs/", bucket("")),
            ("s3://logs/a/b", bucket("a/b")),
            ("sftp://nas/srv/b", remote(None, "nas", None)),
            (
                "sftp://me@nas:2222/srv/b",
                remote(Some("me"), "nas", Some(2222)),
            ),
            ("sftp://me@[::1]/srv/b", remote(Some("me"), "::1", None)),
        ] {
            assert_eq!(Location::parse(text).unwrap(), location, "{text}");
        }
        for text in [
            "",
            "nas",
            "s3://",
            "s3://me@logs",
            "s3://logs:80",
            "s3://logs?x",
            "ftp://nas/b",
            "sftp://nas",
            "sftp://nas/",
            "sftp:///b",
            "sftp://-oProxyCommand=x/b",
            "sftp://-l@nas/b",
            "sftp://@nas/b",
        ] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
    }
}

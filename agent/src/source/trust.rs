//! Whose symbolic links are followed: the agent reads what the users of its machine cannot, so a link of theirs
//! must not lead it there.
//!
//! A link counts when it is root's or the agent's own user's, or when what it leads to belongs to whom the link
//! belongs to. The same goes for every link on the way, from the root of the file system on: what a source names
//! outright may lie in a directory of a user, who can put a link in its place.

#[cfg(unix)]
use std::collections::VecDeque;
#[cfg(unix)]
use std::ffi::OsString;
use std::fmt;
use std::io;
#[cfg(unix)]
use std::path::{Component, Path};

#[cfg(unix)]
use super::bookmark::FileId;
#[cfg(unix)]
use super::disk::Disk;

/// From where on the way to a file is looked at.
pub(super) const ROOT_DIR: &str = "/";

/// A link that is not followed.
#[derive(Debug)]
#[cfg_attr(
    not(unix),
    expect(dead_code, reason = "links have no owners that could be compared")
)]
pub(super) struct Refusal {
    link: u32,
    target: u32,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, target } = self;
        write!(
            f,
            "a symbolic link of user {link} to what belongs to user {target} is not followed"
        )
    }
}

/// Whether an error says that a link is not followed.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Refusal>())
}

/// What the path leads to when every link below `root` is one that counts.
///
/// # Errors
/// One does not, see [`is_refusal`]; and those of the file system.
#[cfg(unix)]
pub(super) fn leads_to(disk: &dyn Disk, path: &Path, root: &Path) -> io::Result<FileId> {
    let Ok(below) = path.strip_prefix(root) else {
        return Ok(disk.owner(path, true)?.0); // named as it is
    };
    let own = disk.user();
    let mut at = root.to_owned();
    let names = |path: &Path| -> Vec<OsString> {
        let parts = path
            .components()
            .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut left = VecDeque::from(names(below));
    let mut links = 0;
    // Who owns links on the way that count by what they lead to: at the end it is asked once more, of the very file
    // that is told, since a name may lead elsewhere by then.
    let mut owners = Vec::new();
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let Some((link, target)) = disk.read_link(&next)? else {
            at = next;
            continue;
        };
        links += 1;
        if links > LINKS_MAX {
            return Err(io::Error::other("too many links lead from one to the next"));
        }
        if link != ROOT && link != own {
            owners.push(link);
            let (_, target) = disk.owner(&next, true)?;
            if target != link {
                let refusal = Refusal { link, target };
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal));
            }
        }
        // Of here on its own way is looked at, from where the link really is.
        at = match target.is_absolute() {
            true => "/".into(),
            false => disk.canonical(&at)?,
        };
        for name in names(&target).into_iter().rev() {
            left.push_front(name);
        }
    }
    let (id, target) = disk.owner(&at, false)?;
    if let Some(&link) = owners.iter().find(|&&link| link != target) {
        let refusal = Refusal { link, target };
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal));
    }
    Ok(id)
}

#[cfg(unix)]
const ROOT: u32 = 0;
/// As many as the system follows (path_resolution(7)).
#[cfg(unix)]
const LINKS_MAX: usize = 40;

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{MetadataExt as _, lchown, symlink};
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::SystemTime;

    use super::*;
    use crate::source::disk::{Name, Opened, RealDisk, Seen};

    /// Owners are claimed, so that it says the same whoever runs it. Root alone can make real ones, and tries those too.
    #[test]
    fn a_link_counts_when_it_is_roots_or_leads_to_what_belongs_to_its_owner() {
        let dir = std::env::temp_dir().join(format!("scrinium-trust-{}", std::process::id()));
        let claimed = Arc::new(Owners::default());
        let own = |path: &Path, owner: u32| {
            claimed.0.lock().unwrap().insert(path.to_owned(), owner);
        };
        links_count_by_their_owners(&dir, &*claimed, &own);
        std::fs::create_dir(&dir).unwrap();
        let is_root = std::fs::metadata(&dir).unwrap().uid() == 0;
        std::fs::remove_dir(&dir).unwrap();
        if !is_root {
            eprintln!("skipped, because only root can make them: links that belong to others");
            return;
        }
        let own = |path: &Path, owner: u32| lchown(path, Some(owner), Some(owner)).unwrap();
        links_count_by_their_owners(&dir, &RealDisk::default(), &own);
    }

    /// Everything is root's at first; `own` gives a name to somebody.
    fn links_count_by_their_owners(dir: &Path, disk: &dyn Disk, own: &dyn Fn(&Path, u32)) {
        drop(std::fs::remove_dir_all(dir));
        std::fs::create_dir_all(dir).unwrap();
        let dir = std::fs::canonicalize(dir).unwrap();
        let (logs, home) = (dir.join("logs"), dir.join("home"));
        std::fs::create_dir_all(logs.join("app")).unwrap();
        std::fs::create_dir_all(&home).unwrap();
        let (secret, mine) = (dir.join("secret"), home.join("mine"));
        for path in [&secret, &mine, &logs.join("plain.log")] {
            std::fs::File::create(path).unwrap();
        }
        let link = |target: &Path, name: &str, owner: u32| {
            let path = logs.join(name);
            symlink(target, &path).unwrap();
            own(&path, owner);
            path
        };
        own(&mine, NOBODY);
        let of = |path: &Path| FileId::of_metadata(&std::fs::metadata(path).unwrap());
        let leads = |path: &Path| leads_to(disk, path, &logs);
        let plain = logs.join("plain.log");
        assert_eq!(leads(&plain).unwrap(), of(&plain));
        let users = link(&mine, "own.log", NOBODY);
        assert_eq!(leads(&users).unwrap(), of(&mine));
        let roots = link(Path::new("../secret"), "roots.log", ROOT);
        assert_eq!(leads(&roots).unwrap(), of(&secret));
        let foreign = link(&secret, "app/foreign.log", NOBODY);
        let error = leads(&foreign).unwrap_err();
        assert!(
            is_refusal(&error) && error.to_string().contains("65534"),
            "{error}"
        );
        // Through a directory, through a chain, and behind root's own link.
        link(&dir, "app/dir", NOBODY);
        assert!(is_refusal(
            &leads(&logs.join("app/dir/secret")).unwrap_err()
        ));
        let chain = link(&foreign, "app/chain.log", NOBODY);
        assert!(is_refusal(&leads(&chain).unwrap_err()));
        let behind = link(&mine, "behind.log", ROOT);
        assert!(leads(&behind).is_ok());
        std::fs::remove_file(&mine).unwrap();
        symlink(&secret, &mine).unwrap();
        own(&mine, NOBODY);
        assert!(is_refusal(&leads(&behind).unwrap_err()));
        // What is named outright may be below anything.
        assert!(leads_to(disk, &logs.join("app/dir/secret"), &logs.join("app/dir")).is_ok());
        let (one, other) = (logs.join("loop.log"), logs.join("loop2.log"));
        symlink(&one, &other).unwrap();
        symlink(&other, &one).unwrap();
        assert!(leads(&one).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// The disk of this machine, but that each name belongs to whom a test says, else to root.
    #[derive(Debug, Default)]
    struct Owners(Mutex<BTreeMap<PathBuf, u32>>, RealDisk);

    impl Owners {
        fn of(&self, path: &Path) -> io::Result<u32> {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Ok(ROOT);
            };
            let path = std::fs::canonicalize(parent)?.join(name);
            let owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(owners.get(&path).copied().unwrap_or(ROOT))
        }
    }

    impl Disk for Owners {
        fn look(&self, path: &Path) -> io::Result<Option<Seen>> {
            self.1.look(path)
        }

        fn open(&self, path: &Path) -> io::Result<Option<Opened>> {
            self.1.open(path)
        }

        fn names(
            &self,
            dir: &Path,
            begin: &str,
            inode: u64,
            urgent: bool,
        ) -> io::Result<Vec<Name>> {
            self.1.names(dir, begin, inode, urgent)
        }

        fn changed(&self, dir: &Path) -> Option<SystemTime> {
            self.1.changed(dir)
        }

        fn read_link(&self, path: &Path) -> io::Result<Option<(u32, PathBuf)>> {
            let Some((_, target)) = self.1.read_link(path)? else {
                return Ok(None);
            };
            Ok(Some((self.of(path)?, target)))
        }

        fn owner(&self, path: &Path, follows: bool) -> io::Result<(FileId, u32)> {
            let (id, _) = self.1.owner(path, follows)?;
            let owner = match follows {
                true => self.of(&std::fs::canonicalize(path)?)?,
                false => self.of(path)?,
            };
            Ok((id, owner))
        }

        fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
            self.1.canonical(path)
        }

        fn user(&self) -> u32 {
            ROOT
        }
    }

    const NOBODY: u32 = 65534;
}

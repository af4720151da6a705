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

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, lchown, symlink};

    use super::*;
    use crate::source::disk::RealDisk;

    /// Root makes what each case needs; others can make links of their own alone.
    #[test]
    fn a_link_counts_when_it_is_roots_or_leads_to_what_belongs_to_its_owner() {
        const NOBODY: Option<u32> = Some(65534);
        let dir = std::env::temp_dir().join(format!("scrinium-trust-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (logs, home) = (dir.join("logs"), dir.join("home"));
        std::fs::create_dir_all(logs.join("app")).unwrap();
        std::fs::create_dir_all(&home).unwrap();
        let (secret, mine) = (dir.join("secret"), home.join("mine"));
        for path in [&secret, &mine, &logs.join("plain.log")] {
            std::fs::File::create(path).unwrap();
        }
        if std::fs::metadata(&secret).unwrap().uid() != 0 {
            return std::fs::remove_dir_all(dir).unwrap();
        }
        let link = |target: &Path, name: &str, owner: Option<u32>| {
            let path = logs.join(name);
            symlink(target, &path).unwrap();
            lchown(&path, owner, owner).unwrap();
            path
        };
        lchown(&mine, NOBODY, NOBODY).unwrap();
        let of = |path: &Path| FileId::of_metadata(&std::fs::metadata(path).unwrap());
        let disk = RealDisk::default();
        let leads = |path: &Path| leads_to(&disk, path, &logs);
        let plain = logs.join("plain.log");
        assert_eq!(leads(&plain).unwrap(), of(&plain));
        let own = link(&mine, "own.log", NOBODY);
        assert_eq!(leads(&own).unwrap(), of(&mine));
        let roots = link(Path::new("../secret"), "roots.log", None);
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
        let behind = link(&mine, "behind.log", None);
        assert!(leads(&behind).is_ok());
        std::fs::remove_file(&mine).unwrap();
        symlink(&secret, &mine).unwrap();
        lchown(&mine, NOBODY, NOBODY).unwrap();
        assert!(is_refusal(&leads(&behind).unwrap_err()));
        // What is named outright may be below anything.
        assert!(leads_to(&disk, &logs.join("app/dir/secret"), &logs.join("app/dir")).is_ok());
        let (one, other) = (logs.join("loop.log"), logs.join("loop2.log"));
        symlink(&one, &other).unwrap();
        symlink(&other, &one).unwrap();
        assert!(leads(&one).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}

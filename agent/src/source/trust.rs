//! Whose symbolic links are followed: the agent reads what the users of its machine cannot, so a link of theirs
//! must not lead it there.
//!
//! A link counts when it is root's or the agent's own user's, or when what it leads to belongs to whom the link
//! belongs to. The same goes for every link on the way, from the root of the file system on: what a source names
//! outright may lie in a directory of a user, who can put a link in its place.

#[cfg(unix)]
use std::collections::VecDeque;
#[cfg(unix)]
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::Path;
#[cfg(unix)]
use std::path::{Component, PathBuf};

use super::bookmark::FileId;
use super::disk::{Disk, Led, Seen};
#[cfg(unix)]
use super::disk::{Way, is_absent};
use super::entries::Entries;

/// From where on the way to a file is looked at.
pub(super) const ROOT_DIR: &str = "/";

/// A link that is not followed.
#[derive(Debug)]
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

/// Opens the regular file that the path leads to when every link below `root` is one that counts.
///
/// # Errors
/// One does not, see [`is_refusal`]; and those of the file system.
pub(super) fn open(disk: &dyn Disk, path: &Path, root: &Path) -> io::Result<Led> {
    #[cfg(unix)]
    if path.starts_with(root) {
        return match lead(disk, path, root).and_then(|way| way.open()) {
            Err(error) if is_absent(&error) => Ok(Led::Nowhere),
            led => led,
        };
    }
    #[cfg(not(unix))]
    let _named_as_it_is = root;
    Ok(disk.open(path)?.map_or(Led::Nowhere, Led::To))
}

/// The regular file that the path leads to, likewise.
///
/// # Errors
/// As of [`open`].
pub(super) fn look(disk: &dyn Disk, path: &Path, root: &Path) -> io::Result<Option<Seen>> {
    #[cfg(unix)]
    if path.starts_with(root) {
        return match lead(disk, path, root).and_then(|way| way.look()) {
            Err(error) if is_absent(&error) => Ok(None),
            seen => seen,
        };
    }
    #[cfg(not(unix))]
    let _named_as_it_is = root;
    disk.look(path)
}

/// What the file system calls the directory that the path leads to, likewise, and the names in it.
///
/// # Errors
/// As of [`open`].
pub(super) fn list(disk: &dyn Disk, dir: &Path, root: &Path) -> io::Result<(FileId, Entries)> {
    #[cfg(unix)]
    if dir.starts_with(root) {
        let way = lead(disk, dir, root)?;
        return Ok((way.owner()?.0, way.list()?));
    }
    #[cfg(not(unix))]
    let _named_as_it_is = (root, disk);
    Ok((identity(dir)?, Entries::of(dir)?))
}

/// What the path leads to when every link below `root` is one that counts.
///
/// # Errors
/// As of [`open`].
#[cfg(unix)]
pub(super) fn leads_to(disk: &dyn Disk, path: &Path, root: &Path) -> io::Result<FileId> {
    match path.starts_with(root) {
        true => Ok(lead(disk, path, root)?.owner()?.0),
        false => Ok(disk.owner(path, true)?.0), // named as it is
    }
}

/// The way to a path below `root`, when every link on it is one that counts.
#[cfg(unix)]
fn lead<'a>(disk: &'a dyn Disk, path: &Path, root: &Path) -> io::Result<Box<dyn Way + 'a>> {
    // Mostly there is no link, and the system says so of the whole way at once.
    let parent = path.parent().filter(|parent| parent.starts_with(root));
    if let Some((parent, name)) = parent.zip(path.file_name())
        && let Ok(Some(way)) = disk.hold(parent, true)
    {
        return follow(disk, way, VecDeque::from([name.to_owned()]));
    }
    let below = path.strip_prefix(root).unwrap_or(path);
    let left = VecDeque::from(names(below));
    let way: Box<dyn Way + 'a> = match disk.hold(root, false)? {
        Some(way) => way,
        None => ByName::at(disk, root),
    };
    follow(disk, way, left)
}

#[cfg(unix)]
fn names(path: &Path) -> Vec<OsString> {
    let parts = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(unix)]
fn follow<'a>(
    disk: &dyn Disk,
    mut way: Box<dyn Way + 'a>,
    mut left: VecDeque<OsString>,
) -> io::Result<Box<dyn Way + 'a>> {
    let own = disk.user();
    let mut links = 0;
    // Who owns links on the way that count by what they lead to: that, and what is told at the end, must be theirs.
    let mut owners = Vec::new();
    // Those of them that are not there yet, and how many names are left when they are.
    let mut awaited = Vec::new();
    while let Some(name) = left.pop_front() {
        if name == ".." {
            way.up()?;
        } else if let Some((link, target)) = way.step(&name)? {
            links += 1;
            if links > LINKS_MAX {
                return Err(io::Error::other("too many links lead from one to the next"));
            }
            if link != ROOT && link != own {
                owners.push(link);
                awaited.push((link, left.len()));
            }
            // From here on its own way is looked at.
            if target.is_absolute() {
                way.to_root()?;
            }
            for name in names(&target).into_iter().rev() {
                left.push_front(name);
            }
        }
        let is_there = |(_, after): &mut (u32, usize)| *after == left.len();
        while let Some((link, _)) = awaited.pop_if(is_there) {
            check(&*way, link)?;
        }
    }
    for link in owners {
        check(&*way, link)?;
    }
    Ok(way)
}

/// Whether what is where a way stands belongs to the owner of a link that led there.
#[cfg(unix)]
fn check(way: &dyn Way, link: u32) -> io::Result<()> {
    let (_, target) = way.owner()?;
    if target == link {
        return Ok(());
    }
    Err(refusal(link, target))
}

/// That a link is not followed.
#[cfg(any(unix, test))]
pub(super) fn refusal(link: u32, target: u32) -> io::Error {
    let refusal = Refusal { link, target };
    io::Error::new(io::ErrorKind::PermissionDenied, refusal)
}

/// A way that goes by names: whoever exchanges one is not seen, except by the number of what is opened.
#[cfg(unix)]
struct ByName<'a> {
    disk: &'a dyn Disk,
    at: PathBuf,
}

#[cfg(unix)]
impl<'a> ByName<'a> {
    fn at(disk: &'a dyn Disk, dir: &Path) -> Box<dyn Way + 'a> {
        let at = dir.to_owned();
        Box::new(Self { disk, at })
    }
}

#[cfg(unix)]
impl Way for ByName<'_> {
    fn step(&mut self, name: &OsStr) -> io::Result<Option<(u32, PathBuf)>> {
        let next = self.at.join(name);
        let Some((owner, target)) = self.disk.read_link(&next)? else {
            self.at = next;
            return Ok(None);
        };
        if target.is_relative() {
            self.at = self.disk.canonical(&self.at)?;
        }
        Ok(Some((owner, target)))
    }

    fn up(&mut self) -> io::Result<()> {
        self.at.pop();
        Ok(())
    }

    fn to_root(&mut self) -> io::Result<()> {
        self.at = ROOT_DIR.into();
        Ok(())
    }

    fn owner(&self) -> io::Result<(FileId, u32)> {
        self.disk.owner(&self.at, false)
    }

    fn look(&self) -> io::Result<Option<Seen>> {
        self.disk.look(&self.at)
    }

    fn open(&self) -> io::Result<Led> {
        let (judged, _) = self.owner()?;
        Ok(match self.disk.open(&self.at)? {
            None => Led::Nowhere,
            Some(opened) if opened.id != judged => Led::Moved,
            Some(opened) => Led::To(opened),
        })
    }

    fn list(&self) -> io::Result<Entries> {
        Entries::of(&self.at)
    }
}

/// What the file system calls a directory.
#[cfg(unix)]
pub(super) fn identity(path: &Path) -> io::Result<FileId> {
    Ok(FileId::of_metadata(&std::fs::metadata(path)?))
}

#[cfg(windows)]
pub(super) fn identity(path: &Path) -> io::Result<FileId> {
    let handle = winapi_util::Handle::from_path_any(path)?;
    let information = winapi_util::file::information(&handle)?;
    Ok(FileId {
        device: information.volume_serial_number(),
        inode: information.file_index(),
    })
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
    use crate::source::disk::{Name, Opened, RealDisk};

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

    /// A directory of a user that becomes a link to root's and back, all the while.
    #[cfg(target_os = "linux")]
    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    fn a_directory_that_is_exchanged_for_a_link_shows_nothing_of_others() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use rustix::fs::{CWD, RenameFlags, renameat_with};

        let dir = std::env::temp_dir().join(format!("scrinium-exchange-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        for (name, text) in [("secret", "of root"), ("d", "of a user")] {
            let below = dir.join(name).join("a/b");
            std::fs::create_dir_all(&below).unwrap();
            std::fs::write(below.join("x.log"), text).unwrap();
            std::fs::write(below.join(format!("x.log.{text}")), text).unwrap();
        }
        if std::fs::metadata(&dir).unwrap().uid() != 0 {
            eprintln!("skipped, because only root can make them: links that belong to others");
            return std::fs::remove_dir_all(dir).unwrap();
        }
        symlink(dir.join("secret"), dir.join("e")).unwrap();
        for path in ["e", "d", "d/a", "d/a/b", "d/a/b/x.log"] {
            lchown(dir.join(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let is_over = AtomicBool::new(false);
        let (mut own, mut foreign, mut names) = (0, 0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let (one, other) = (dir.join("d"), dir.join("e"));
                    renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
            });
            let disk = RealDisk::default();
            let (path, root) = (dir.join("d/a/b/x.log"), Path::new(ROOT_DIR));
            for _ in 0..EXCHANGES {
                if let Ok(Some(mut follow)) = crate::source::follow::open(&disk, &path, root) {
                    let mut text = [0; 16];
                    let len = follow.content.read_at(&mut text, 0).unwrap();
                    match &text[..len] {
                        b"of a user" => own += 1,
                        _ => foreign += 1,
                    }
                }
                let listed = disk.names(
                    (path.parent().unwrap(), root),
                    OsStr::new("x.log."),
                    0,
                    true,
                );
                let listed = listed.unwrap_or_default();
                names += listed
                    .iter()
                    .filter(|name| name.path.ends_with("x.log.of root"))
                    .count();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(own > 0);
        assert_eq!((foreign, names), (0, 0), "opened and listed of {own}");
        std::fs::remove_dir_all(dir).unwrap();
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
            dir: (&Path, &Path),
            begin: &OsStr,
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
    #[cfg(target_os = "linux")]
    const EXCHANGES: usize = 5000;
}

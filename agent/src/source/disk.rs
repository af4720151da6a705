//! What the file source asks of the file system: the real one here, a simulated one in its model.
//!
//! Nothing here waits for anybody: what is no regular file is not opened, and an open never blocks.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::bookmark::FileId;
use super::entries::{Entries, Kind};
#[cfg(target_os = "linux")]
use super::held::Held;
use super::trust;
use crate::clock;

/// A file system.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// The regular file that the path leads to.
    fn look(&self, path: &Path) -> io::Result<Option<Seen>>;

    /// Opens the regular file that the path leads to.
    fn open(&self, path: &Path) -> io::Result<Option<Opened>>;

    /// Regular files in `dir` whose names begin with the bytes of `begin`, or that are `inode`, by name; no links. Links to it below
    /// `root` count by their owners. One look is as good as another for a moment when `is_urgent` is not set.
    fn names(
        &self,
        dir_and_root: (&Path, &Path),
        begin: &OsStr,
        inode: u64,
        is_urgent: bool,
    ) -> io::Result<Vec<Name>>;

    /// A way that begins at a directory and is held, whoever renames what is on it; the directory is taken as it is
    /// named, or only if no link leads to it. `None` where names are all there is.
    #[cfg(unix)]
    fn hold(&self, _dir: &Path, _is_straight: bool) -> io::Result<Option<Box<dyn Way>>> {
        Ok(None)
    }

    /// When a name in `dir` was made, changed or removed last.
    fn changed(&self, dir: &Path) -> Option<SystemTime>;

    /// Who owns the link at `path` and where it leads; none when it is no link.
    fn read_link(&self, path: &Path) -> io::Result<Option<(u32, PathBuf)>>;

    /// Which file is at the path, and whose; links are followed if `follows`.
    fn owner(&self, path: &Path, follows: bool) -> io::Result<(FileId, u32)>;

    /// Whether an open file, which was found at a path, is one of the agent itself: its keys are nobody's log.
    fn is_own(&self, _file: &dyn OpenFile, _path: &Path) -> bool {
        false
    }

    /// The path without links.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;

    /// Who asks.
    fn user(&self) -> u32;
}

/// A way through directories, one name after the other.
#[cfg(unix)]
pub(super) trait Way {
    /// Goes on to a name; where that is a link it stays, and says whose the link is and where it leads.
    fn step(&mut self, name: &OsStr) -> io::Result<Option<(u32, PathBuf)>>;

    /// Goes to the directory above.
    fn up(&mut self) -> io::Result<()>;

    fn to_root(&mut self) -> io::Result<()>;

    /// What is where it stands, and whose.
    fn owner(&self) -> io::Result<(FileId, u32)>;

    /// The regular file where it stands.
    fn look(&self) -> io::Result<Option<Seen>>;

    /// Opens that.
    fn open(&self) -> io::Result<Led>;

    /// The names in the directory where it stands.
    fn list(&self) -> io::Result<Entries>;
}

/// Where a way leads.
pub(super) enum Led {
    To(Opened),
    /// There is no regular file.
    Nowhere,
    /// Another file took the place of the one that was looked at.
    Moved,
}

/// A file that is open.
pub(super) trait OpenFile: fmt::Debug + Send + Sync {
    fn stat(&self) -> io::Result<Stat>;

    /// Reads into `buffer` what stands at `offset`; nothing at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// What hole begins at `offset`, of which nobody wrote a byte.
    fn after_hole(&self, offset: u64) -> Option<Hole>;

    /// Where it is, whatever way led to it; `None` where the system does not say that.
    fn place(&self) -> Option<PathBuf> {
        None
    }

    /// Whether its time changes with each write and at no other moment. On Windows it changes when who writes lets go of
    /// the file, and what another machine holds has that machine's time a moment later.
    fn tells_when_it_is_written(&self) -> bool {
        true
    }
}

/// A file at a path, as it was when it was looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    pub(super) id: FileId,
    pub(super) len: u64,
    pub(super) modified: SystemTime,
}

/// A file that was opened, and what it is called.
pub(super) struct Opened {
    pub(super) file: Arc<dyn OpenFile>,
    pub(super) id: FileId,
}

/// What an open file says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    pub(super) len: u64,
    pub(super) modified: SystemTime,
    /// `None` when the file system does not know.
    pub(super) created: Option<SystemTime>,
    pub(super) owner: u32,
    /// No name leads to it, or none will when everybody has let go of it.
    pub(super) is_deleted: bool,
}

/// A name in a directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Name {
    pub(super) path: PathBuf,
    pub(super) inode: u64,
}

/// Bytes of a file that nobody wrote.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "only Linux says where holes are")
)]
pub(super) enum Hole {
    /// Up to here.
    Until(u64),
    ToTheEnd,
}

/// The machine's own.
#[derive(Debug, Default)]
pub(super) struct RealDisk {
    listing: Mutex<Option<Listing>>,
    /// The state directory, without links.
    own: Option<PathBuf>,
}

impl RealDisk {
    /// Nothing in the agent's state directory is opened, whatever a source names and whatever leads there.
    pub(super) fn keeping_off(state: &Path) -> Self {
        let own = std::fs::canonicalize(state);
        Self {
            own: Some(own.unwrap_or_else(|_| state.to_owned())),
            ..Self::default()
        }
    }
}

/// The directory that was listed last: many streams may ask for the same one at once.
#[derive(Debug)]
struct Listing {
    dir: PathBuf,
    at: Instant,
    /// When names changed last, if that was long enough before that no later change has the same time.
    changed: Option<SystemTime>,
    /// In the order of their bytes.
    names: Vec<(OsString, u64)>,
}

impl Disk for RealDisk {
    fn is_own(&self, file: &dyn OpenFile, path: &Path) -> bool {
        let Some(own) = &self.own else { return false };
        let place = file.place().or_else(|| std::fs::canonicalize(path).ok());
        place.is_some_and(|place| place.starts_with(own))
    }

    fn look(&self, path: &Path) -> io::Result<Option<Seen>> {
        let (metadata, id) = match look_at(path) {
            Err(error) if is_absent(&error) => return Ok(None),
            found => found?,
        };
        if !metadata.is_file() {
            return Ok(None);
        }
        Seen::of(id, &metadata).map(Some)
    }

    fn open(&self, path: &Path) -> io::Result<Option<Opened>> {
        // A device may do something when it is opened, a pipe lets a writer go on.
        if self.look(path)?.is_none() {
            return Ok(None);
        }
        let file = match open_shared(path) {
            Err(error) if is_absent(&error) => return Ok(None),
            file => file?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let id = FileId::of(&file, &metadata)?;
        let file = Arc::new(file);
        Ok(Some(Opened { file, id }))
    }

    fn names(
        &self,
        (dir, root): (&Path, &Path),
        begin: &OsStr,
        inode: u64,
        is_urgent: bool,
    ) -> io::Result<Vec<Name>> {
        let mut kept = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let changed = self.changed(dir).filter(|changed| is_past(*changed));
        let is_good = |kept: &Listing| {
            kept.dir == dir
                && !is_urgent
                && changed.is_some()
                && kept.changed == changed
                && now.duration_since(kept.at) < LISTING_LASTS
        };
        if !kept.as_ref().is_some_and(is_good) {
            *kept = Some(Listing {
                dir: dir.to_owned(),
                at: now,
                changed,
                names: self.list(dir, root)?,
            });
        }
        let names = kept.as_ref().map_or(&[][..], |kept| &kept.names);
        let begin = begin.as_encoded_bytes();
        let first = names.partition_point(|(name, _)| name.as_encoded_bytes() < begin);
        let begins = names.iter().skip(first);
        let begins = begins.take_while(|(name, _)| name.as_encoded_bytes().starts_with(begin));
        let is_it =
            |name: &OsString, own: u64| own == inode && !name.as_encoded_bytes().starts_with(begin);
        let others = match inode {
            0 => &[][..],
            _ => names,
        };
        let others = others.iter().filter(|(name, own)| is_it(name, *own));
        let wanted = begins.chain(others);
        let wanted = wanted.map(|(name, inode)| {
            let path = dir.join(name);
            // Where a directory does not say which files its names are, each is asked.
            let inode = match *inode {
                0 => self
                    .look(&path)
                    .ok()
                    .flatten()
                    .map_or(0, |seen| seen.id.inode),
                inode => inode,
            };
            Name { path, inode }
        });
        let wanted = wanted.collect();
        if names.len() > LISTING_MAX {
            *kept = None;
        }
        Ok(wanted)
    }

    #[cfg(target_os = "linux")]
    fn hold(&self, dir: &Path, is_straight: bool) -> io::Result<Option<Box<dyn Way>>> {
        let way = match is_straight {
            true => Held::straight(dir)?,
            false => Held::at(dir)?,
        };
        Ok(Some(Box::new(way)))
    }

    fn changed(&self, dir: &Path) -> Option<SystemTime> {
        std::fs::metadata(dir).and_then(|dir| dir.modified()).ok()
    }

    #[cfg(target_os = "linux")]
    fn read_link(&self, path: &Path) -> io::Result<Option<(u32, PathBuf)>> {
        use std::os::unix::ffi::OsStringExt as _;

        use rustix::fs::{FileType, Mode, OFlags, fstat, open, readlinkat};
        // Of one and the same link.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = open(path, flags, Mode::empty())?;
        let stat = fstat(&link)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let target = readlinkat(&link, "", Vec::new())?.into_bytes();
        Ok(Some((stat.st_uid, OsString::from_vec(target).into())))
    }

    /// Where a link cannot be opened itself.
    #[cfg(not(target_os = "linux"))]
    fn read_link(&self, path: &Path) -> io::Result<Option<(u32, PathBuf)>> {
        let metadata = std::fs::symlink_metadata(path)?;
        if !metadata.is_symlink() {
            return Ok(None);
        }
        Ok(Some((owner_of(&metadata), std::fs::read_link(path)?)))
    }

    fn owner(&self, path: &Path, follows: bool) -> io::Result<(FileId, u32)> {
        let metadata = match follows {
            true => std::fs::metadata(path)?,
            false => std::fs::symlink_metadata(path)?,
        };
        #[cfg(unix)]
        let id = FileId::of_metadata(&metadata);
        #[cfg(not(unix))]
        let id = FileId::default();
        Ok((id, owner_of(&metadata)))
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::canonicalize(path)
    }

    #[cfg(unix)]
    fn user(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[cfg(not(unix))]
    fn user(&self) -> u32 {
        0
    }
}

impl RealDisk {
    /// Regular files in the order of their names.
    fn list(&self, dir: &Path, root: &Path) -> io::Result<Vec<(OsString, u64)>> {
        let mut names = Vec::new();
        for entry in trust::list(self, dir, root)?.1 {
            let entry = entry?;
            if entry.kind == Kind::File {
                names.push((entry.name, entry.inode));
            }
        }
        names.sort_unstable_by(|(one, _), (other, _)| {
            one.as_encoded_bytes().cmp(other.as_encoded_bytes())
        });
        Ok(names)
    }
}

impl Seen {
    pub(super) fn of(id: FileId, metadata: &Metadata) -> io::Result<Self> {
        Ok(Self {
            id,
            len: metadata.len(),
            modified: written(metadata)?,
        })
    }
}

/// When a file was written last. That is what its owner says; a time that is still to come is none, and when it was made
/// counts, which nobody can set.
fn written(metadata: &Metadata) -> io::Result<SystemTime> {
    let modified = metadata.modified()?;
    let now = SystemTime::UNIX_EPOCH + Duration::from_micros(clock::unix_us());
    if modified <= now + AHEAD_MAX {
        return Ok(modified);
    }
    let created = metadata.created().ok();
    Ok(created
        .filter(|created| *created <= now)
        .unwrap_or(modified))
}

impl OpenFile for File {
    #[cfg(target_os = "linux")]
    fn place(&self) -> Option<PathBuf> {
        use std::os::fd::AsRawFd as _;
        std::fs::read_link(format!("/proc/self/fd/{}", self.as_raw_fd())).ok()
    }

    fn stat(&self) -> io::Result<Stat> {
        let metadata = self.metadata()?;
        Ok(Stat {
            len: metadata.len(),
            modified: written(&metadata)?,
            created: metadata.created().ok(),
            owner: owner_of(&metadata),
            is_deleted: is_deleted(self, &metadata),
        })
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn tells_when_it_is_written(&self) -> bool {
        let system = rustix::fs::fstatfs(self);
        system.is_ok_and(|system| {
            let [.., a, b, c, d] = system.f_type.to_be_bytes();
            !DISTANT.contains(&u32::from_be_bytes([a, b, c, d]))
        })
    }

    #[cfg(windows)]
    fn tells_when_it_is_written(&self) -> bool {
        false
    }

    #[cfg(target_os = "linux")]
    fn after_hole(&self, offset: u64) -> Option<Hole> {
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => (data > offset).then_some(Hole::Until(data)),
            // lseek(2): there is no data any more, or the offset is beyond the end.
            Err(rustix::io::Errno::NXIO) => Some(Hole::ToTheEnd),
            Err(_) => None,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn after_hole(&self, _offset: u64) -> Option<Hole> {
        None
    }
}

/// File systems that other machines or programs hold, or hold too (statfs(2)): NFS, SMB in its three versions, FUSE, 9P, AFS,
/// Ceph, Coda, VirtualBox' and VMware's shares, Lustre, GPFS, BeeGFS, OCFS2, GFS2.
#[cfg(target_os = "linux")]
const DISTANT: [u32; 16] = [
    0x6969,
    0x517B,
    0xFF53_4D42,
    0xFE53_4D42,
    0x6573_5546,
    0x0102_1997,
    0x5346_414F,
    0x00C3_6400,
    0x7375_7245,
    0x786F_4256,
    0xBACB_ACBC,
    0x0BD0_0BD0,
    0x4750_4653,
    0x1983_0326,
    0x7461_636F,
    0x0116_1970,
];

/// Whether the file at a path can be opened, whatever is there by now.
pub(crate) fn can_open(path: &Path) -> io::Result<()> {
    RealDisk::default().open(path).map(drop)
}

/// Whether an error says that there is no such file: below a file there is none either.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether a file system's clock has ticked since.
fn is_past(time: SystemTime) -> bool {
    let now = SystemTime::UNIX_EPOCH + Duration::from_micros(clock::unix_us());
    now.duration_since(time).is_ok_and(|passed| passed > TICK)
}

#[cfg(unix)]
fn owner_of(metadata: &Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::uid(metadata)
}

/// Links have no owners that could be compared.
#[cfg(not(unix))]
fn owner_of(_metadata: &Metadata) -> u32 {
    0
}

#[cfg(unix)]
fn is_deleted(_file: &File, metadata: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(metadata) == 0
}

#[cfg(windows)]
fn is_deleted(file: &File, _metadata: &Metadata) -> bool {
    let information = winapi_util::file::information(file);
    information.is_ok_and(|information| information.number_of_links() == 0)
}

#[cfg(unix)]
fn look_at(path: &Path) -> io::Result<(Metadata, FileId)> {
    let metadata = std::fs::metadata(path)?;
    let id = FileId::of_metadata(&metadata);
    Ok((metadata, id))
}

/// Only an open file says what it is called.
#[cfg(windows)]
fn look_at(path: &Path) -> io::Result<(Metadata, FileId)> {
    let file = open_shared(path)?;
    let metadata = file.metadata()?;
    let id = FileId::of(&file, &metadata)?;
    Ok((metadata, id))
}

/// Whatever took the file's place meanwhile is opened without waiting for anybody, and becomes no terminal of ours.
#[cfg(unix)]
fn open_shared(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(flags).open(path)
}

/// The writer goes on writing, renaming and deleting while we read.
#[cfg(windows)]
fn open_shared(path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt as _;
    const READ_WRITE_DELETE: u32 = 7;
    let mut options = File::options();
    options.read(true).share_mode(READ_WRITE_DELETE).open(path)
}

/// How long a listing of a directory serves those who are in no hurry.
const LISTING_LASTS: Duration = Duration::from_secs(1);
/// More than between two ticks of the clock of common file systems, FAT's apart.
const TICK: Duration = Duration::from_millis(100);
/// How far a file server's clock may be ahead of ours.
const AHEAD_MAX: Duration = Duration::from_secs(300);
/// A listing of more names is not kept: it is about 10 MB.
const LISTING_MAX: usize = 100_000;

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Issue of logrotate, 607: a pipe in the place of a log.
    #[test]
    fn what_is_no_regular_file_is_not_opened_and_nobody_waits_for_it() {
        let dir = std::env::temp_dir().join(format!("scrinium-disk-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let pipe = dir.join("pipe.log");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let disk = RealDisk::default();
        assert!(disk.open(&pipe).unwrap().is_none());
        // As if it had taken the file's place between the look and the open.
        drop(open_shared(&pipe).unwrap());
        assert!(disk.open(Path::new("/dev/null")).unwrap().is_none());
        assert!(disk.open(&dir).unwrap().is_none());
        assert!(disk.open(&dir.join("none")).unwrap().is_none());
        for name in ["app.log.1", "other"] {
            File::create(dir.join(name)).unwrap();
        }
        let inode = disk.look(&dir.join("other")).unwrap().unwrap().id.inode;
        let names = |begin: &str, inode| -> Vec<PathBuf> {
            let names = disk
                .names(
                    (&dir, Path::new(trust::ROOT_DIR)),
                    OsStr::new(begin),
                    inode,
                    true,
                )
                .unwrap();
            names.into_iter().map(|name| name.path).collect()
        };
        assert_eq!(names("app", 0), [dir.join("app.log.1")]);
        let both = [dir.join("app.log.1"), dir.join("other")];
        assert_eq!(names("app", inode), both);
        std::fs::remove_dir_all(dir).unwrap();
    }
}

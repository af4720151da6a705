//! A file system in memory, with the oddities of real ones: numbers given again, clocks that step, links, pipes,
//! permissions, room that is laid out before it is written.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::source::bookmark::FileId;
use crate::source::disk::{Disk, Hole, Name, OpenFile, Opened, Seen, Stat};
use crate::source::trust;

#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) files: BTreeMap<u64, SimFile>,
    pub(super) names: BTreeMap<PathBuf, Node>,
    /// Since 1970.
    pub(super) clock: Duration,
    /// Nothing is given back: the file system is unmounted.
    pub(super) is_away: bool,
    /// A directory that does not let itself be listed.
    pub(super) refused: Option<PathBuf>,
    next: u64,
    free: Vec<u64>,
    /// The names as they were when a directory was looked at last, and how often they had changed.
    listed: (BTreeMap<PathBuf, Node>, u64),
}

#[derive(Clone, Debug, Default)]
pub(super) struct SimFile {
    pub(super) bytes: Vec<u8>,
    /// Nobody wrote what stands from here on.
    pub(super) hole_from: Option<usize>,
    pub(super) created: Duration,
    pub(super) modified: Duration,
    pub(super) owner: u32,
    pub(super) is_unreadable: bool,
    opened: u32,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Node {
    File(u64),
    /// Where it leads and whose it is.
    Link(PathBuf, u32),
    Pipe,
}

#[derive(Debug)]
struct SimHandle {
    disk: SimDisk,
    inode: u64,
}

impl SimDisk {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Makes a file, or empties the one that is there.
    pub(super) fn create(&mut self, path: &Path) -> u64 {
        // The number that was free last is the next, as on many file systems.
        let inode = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        let (created, modified) = (self.clock, self.clock);
        let file = SimFile {
            created,
            modified,
            ..SimFile::default()
        };
        self.files.insert(inode, file);
        self.names.insert(path.to_owned(), Node::File(inode));
        self.sweep();
        inode
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        if let Some(node) = self.names.remove(from) {
            self.names.insert(to.to_owned(), node);
        }
        self.sweep();
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.names.remove(path);
        self.sweep();
    }

    pub(super) fn write(&mut self, inode: u64, at: usize, bytes: &[u8]) {
        let clock = self.clock;
        let Some(file) = self.files.get_mut(&inode) else {
            return;
        };
        let end = at + bytes.len();
        if file.bytes.len() < end {
            file.bytes.resize(end, 0);
        }
        file.bytes[at..end].copy_from_slice(bytes);
        file.hole_from = file.hole_from.map(|from| from.max(end));
        file.modified = clock;
    }

    pub(super) fn inode(&self, path: &Path) -> Option<u64> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            match self.names.get(&path)? {
                Node::File(inode) => return Some(*inode),
                Node::Link(target, _) => path = target.clone(),
                Node::Pipe => return None,
            }
        }
        None
    }

    pub(super) fn is_named(&self, inode: u64) -> bool {
        self.names.values().any(|node| *node == Node::File(inode))
    }

    /// Gives the numbers back of files that nobody holds.
    fn sweep(&mut self) {
        if self.is_away {
            return;
        }
        let held: Vec<u64> = self
            .files
            .iter()
            .filter(|(_, file)| file.opened > 0)
            .map(|(inode, _)| *inode)
            .collect();
        let named: Vec<u64> = self
            .names
            .values()
            .filter_map(|node| match node {
                Node::File(inode) => Some(*inode),
                Node::Link(..) | Node::Pipe => None,
            })
            .collect();
        let gone = self
            .files
            .keys()
            .filter(|inode| !held.contains(inode) && !named.contains(inode));
        let gone: Vec<u64> = gone.copied().collect();
        for inode in gone {
            self.files.remove(&inode);
            self.free.push(inode);
        }
    }

    /// The writer holds a file too.
    pub(super) fn hold(&mut self, inode: u64, by: i32) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.opened = file.opened.saturating_add_signed(by);
        }
        self.sweep();
    }

    fn seen(&self, inode: u64) -> Option<Seen> {
        let file = self.files.get(&inode)?;
        Some(Seen {
            id: id(inode),
            len: file.bytes.len() as u64,
            modified: SystemTime::UNIX_EPOCH + file.modified,
        })
    }
}

fn id(inode: u64) -> FileId {
    FileId { device: 1, inode }
}

impl Disk for SimDisk {
    fn look(&self, path: &Path) -> io::Result<Option<Seen>> {
        let inner = self.lock();
        Ok(inner.inode(path).and_then(|inode| inner.seen(inode)))
    }

    fn open(&self, path: &Path) -> io::Result<Option<Opened>> {
        let mut inner = self.lock();
        let Some(inode) = inner.inode(path) else {
            return Ok(None);
        };
        let Some(file) = inner.files.get_mut(&inode) else {
            return Ok(None);
        };
        if file.is_unreadable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        file.opened += 1;
        let disk = self.clone();
        Ok(Some(Opened {
            file: Arc::new(SimHandle { disk, inode }),
            id: id(inode),
        }))
    }

    fn names(
        &self,
        (dir, _): (&Path, &Path),
        begin: &OsStr,
        inode: u64,
        _is_urgent: bool,
    ) -> io::Result<Vec<Name>> {
        let inner = self.lock();
        if inner.refused.as_deref() == Some(dir) {
            return Err(trust::refusal(1000, 0));
        }
        if let Some(Node::File(_)) = inner.names.get(dir) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let mut names = Vec::new();
        for (path, node) in &inner.names {
            let Node::File(own) = node else { continue };
            let name = path.file_name().unwrap().as_encoded_bytes();
            let begins = name.starts_with(begin.as_encoded_bytes());
            if path.parent() == Some(dir) && (begins || *own == inode) {
                let (path, inode) = (path.clone(), *own);
                names.push(Name { path, inode });
            }
        }
        Ok(names)
    }

    /// Not as coarse as a real clock, and never steps.
    fn changed(&self, _dir: &Path) -> Option<SystemTime> {
        let mut inner = self.lock();
        if inner.listed.0 != inner.names {
            inner.listed = (inner.names.clone(), inner.listed.1 + 1);
        }
        Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(inner.listed.1))
    }

    fn read_link(&self, path: &Path) -> io::Result<Option<(u32, PathBuf)>> {
        match self.lock().names.get(path) {
            Some(Node::Link(target, owner)) => Ok(Some((*owner, target.clone()))),
            _ => Ok(None),
        }
    }

    fn owner(&self, path: &Path, follows: bool) -> io::Result<(FileId, u32)> {
        let inner = self.lock();
        if let (Some(Node::Link(_, owner)), false) = (inner.names.get(path), follows) {
            return Ok((FileId::default(), *owner));
        }
        let inode = inner.inode(path).ok_or(io::ErrorKind::NotFound)?;
        Ok((id(inode), inner.files[&inode].owner))
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let inner = self.lock();
        let mut path = path.to_owned();
        while let Some(Node::Link(target, _)) = inner.names.get(&path) {
            path.clone_from(target);
        }
        match inner.names.contains_key(&path) {
            true => Ok(path),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn user(&self) -> u32 {
        0
    }
}

impl OpenFile for SimHandle {
    fn stat(&self) -> io::Result<Stat> {
        let inner = self.disk.lock();
        let file = inner
            .files
            .get(&self.inode)
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Stat {
            len: file.bytes.len() as u64,
            modified: SystemTime::UNIX_EPOCH + file.modified,
            created: Some(SystemTime::UNIX_EPOCH + file.created),
            owner: file.owner,
            is_deleted: !inner.is_named(self.inode) && !inner.is_away,
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.disk.lock();
        let file = inner
            .files
            .get(&self.inode)
            .ok_or(io::ErrorKind::NotFound)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = from.min(file.bytes.len());
        let len = buffer.len().min(file.bytes.len() - from);
        buffer[..len].copy_from_slice(&file.bytes[from..from + len]);
        Ok(len)
    }

    fn after_hole(&self, offset: u64) -> Option<Hole> {
        let inner = self.disk.lock();
        let from = inner.files.get(&self.inode)?.hole_from? as u64;
        (offset >= from.next_multiple_of(4096)).then_some(Hole::ToTheEnd)
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        self.disk.lock().hold(self.inode, -1);
    }
}

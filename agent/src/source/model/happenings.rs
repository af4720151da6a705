//! What happens to files in a world: rotation in its ways, and what people and systems do besides.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::disk::Node;
use super::tokens::tokens_in;
use super::world::{Reopens, Way, World};

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl World {
    fn rename(&mut self, from: &Path, to: &Path) {
        let gone = self.disk.lock().names.get(to).cloned();
        let is_there = self.disk.lock().names.contains_key(from);
        if let (Some(Node::File(inode)), true) = (gone, is_there) {
            self.lose(inode);
        }
        self.disk.lock().rename(from, to);
    }

    pub(super) fn rotate(&mut self) {
        let is_there = self.disk.lock().names.contains_key(&self.real);
        if !self.unmounted.is_empty() || !is_there {
            return;
        }
        self.rotations += 1;
        self.say("  rotates");
        let real = self.real.clone();
        if let Some((inode, _)) = self.writer
            && self.was_there_before(inode)
        {
            self.lose(inode);
        }
        let wall = self.disk.lock().clock.as_secs();
        match self.way {
            Way::Numbers { packs, .. } => {
                self.shift(6);
                if packs {
                    self.pack(&self.named(".2"));
                }
            }
            Way::Copies => return self.copy_and_truncate(),
            Way::Dates => {
                let to = self.named(&format!("-2026{:04}", wall / 10 % 10_000));
                self.rename(&real, &to);
            }
            Way::Times => {
                let (hour, minute, second) = (wall / 3600 % 24, wall / 60 % 60, wall % 60);
                let to = format!(
                    ".2026-11-{:02}T{hour:02}:{minute:02}:{second:02}Z",
                    wall / 86_400 % 30
                );
                let to = self.named(&to);
                self.rename(&real, &to);
            }
            Way::Old => {
                let to = self.named(".old");
                self.rename(&real, &to);
            }
            Way::Words => {
                let word = ["archive", "Mon", "Tue", "Wed", "Thu"][self.below(5)];
                let to = format!("/log/app-{word}{}.log", self.rotations);
                self.rename(&real, Path::new(&to));
            }
            Way::Kubernetes => {
                let to = self.named(&format!(".20261128-{wall}{}", self.rotations));
                self.rename(&real, &to);
            }
            Way::Switched => {
                let other = match real.ends_with("blue.txt") {
                    true => "/data/green.txt",
                    false => "/data/blue.txt",
                };
                let left = self.disk.lock().inode(&real);
                // Between two looks it may be switched there and back.
                if let Some(inode) = left {
                    let bytes = self.disk.lock().files[&inode].bytes.clone();
                    let arrived = self.arrived();
                    let free = tokens_in(&bytes)
                        .into_iter()
                        .filter(|token| !arrived.contains(token));
                    self.free.extend(free);
                }
                self.real = other.into();
                let link = Node::Link(other.into(), 0);
                self.disk.lock().names.insert(self.path.clone(), link);
                self.open_writer();
                return;
            }
            Way::Rewritten => return self.rewrite(),
        }
        let creates = !matches!(self.way, Way::Numbers { creates: false, .. });
        if creates {
            self.create(real.to_str().unwrap());
        }
        match self.reopens {
            Reopens::AtOnce => self.open_writer(),
            Reopens::Later => self.reopen_in = Some(1 + u32::try_from(self.below(8)).unwrap()),
            Reopens::Never => {}
        }
    }

    fn shift(&mut self, last: u32) {
        for n in (1..last).rev() {
            for packed in ["", ".gz"] {
                let from = self.named(&format!(".{n}{packed}"));
                let to = self.named(&format!(".{}{packed}", n + 1));
                self.rename(&from, &to);
            }
        }
        if self.way != Way::Copies {
            let (from, to) = (self.real.clone(), self.named(".1"));
            self.rename(&from, &to);
        }
    }

    fn pack(&mut self, path: &Path) {
        let packed = PathBuf::from(format!("{}.gz", path.display()));
        let inode = self.disk.lock().inode(path);
        let is_there = self.disk.lock().names.contains_key(&packed);
        let (Some(inode), false) = (inode, is_there) else {
            return;
        };
        // Who compresses what is still written to loses it.
        if self.writer.is_some_and(|(own, _)| own == inode) {
            return;
        }
        let (bytes, modified) = {
            let disk = self.disk.lock();
            (
                disk.files[&inode].bytes.clone(),
                disk.files[&inode].modified,
            )
        };
        let packed = gzip(&bytes);
        let to = format!("{}.gz", path.display());
        let serial = self.serials[&inode];
        let new = self.create(&to);
        self.serials.insert(new, serial);
        self.packed.insert(new, tokens_in(&bytes));
        let mut disk = self.disk.lock();
        disk.write(new, 0, &packed);
        disk.files.get_mut(&new).unwrap().modified = Duration::from_secs(modified.as_secs());
        disk.remove(path);
    }

    fn copy_and_truncate(&mut self) {
        let Some(inode) = self.disk.lock().inode(&self.real) else {
            return;
        };
        // So little is no evidence that it is a copy.
        if self.only_copies && self.disk.lock().files[&inode].bytes.len() < 64 {
            return;
        }
        self.shift(6);
        let to = self.named(".1");
        let serial = self.serials[&inode];
        let copy = self.create(to.to_str().unwrap());
        self.serials.insert(copy, serial);
        let bytes = self.disk.lock().files[&inode].bytes.clone();
        self.disk.lock().write(copy, 0, &bytes);
        if self.only_copies {
            return;
        }
        if self.chance(3) {
            let before = self.tokens.len();
            self.write_to(inode, 1);
            let shows = bytes.len() >= 64 && !self.steps_clock;
            if self.agent.is_running() && shows && self.chance(2) {
                self.look(false);
                // Of a short one, only who goes on running knows what its copy is a part of.
                self.part = self.tokens_of(inode);
                self.part.retain(|_| bytes.len() < 1024);
            }
            let arrived = self.arrived();
            let between = before..self.tokens.len();
            let between = between.filter(|token| !arrived.contains(token));
            // That the copy is younger shows that it is one.
            match self.steps_clock {
                true => self.free.extend(between),
                false => self.losable.extend(between),
            }
        }
        // By a clock that steps the copy may seem older than the agent.
        if self.agent.began.is_none() || (self.steps_clock && self.arrived().is_empty()) {
            self.lose(inode);
        }
        let mut disk = self.disk.lock();
        let clock = disk.clock;
        let file = disk.files.get_mut(&inode).unwrap();
        file.bytes.clear();
        file.modified = clock;
        drop(disk);
        if let Some((_, at)) = &mut self.writer {
            *at = 0;
        }
        // What is written from here on is another file's, as far as its order goes.
        self.serial += 1;
        self.serials.insert(inode, self.serial);
    }

    fn rewrite(&mut self) {
        let Some(inode) = self.disk.lock().inode(&self.real) else {
            return;
        };
        let bytes = self.disk.lock().files[&inode].bytes.clone();
        // So little is no evidence that it is a copy.
        let arrived = self.arrived();
        let read = tokens_in(&bytes)
            .into_iter()
            .rfind(|token| arrived.contains(token));
        let at = read.map(|token| format!("[{token}]"));
        let at = at.and_then(|text| memchr::memmem::find(&bytes, text.as_bytes()));
        let serial = self.serials[&inode];
        let may_be_read = self.looked_at.contains(&serial) && !bytes.is_empty();
        if at.map_or(may_be_read, |at| at < 64) {
            return;
        }
        let temporary = format!("{}.tmp", self.real.display());
        let new = self.create(&temporary);
        self.serials.insert(new, serial);
        self.disk.lock().write(new, 0, &bytes);
        if self.chance(2) {
            self.write_to(new, 2);
        }
        let real = self.real.clone();
        self.disk.lock().rename(Path::new(&temporary), &real);
        self.open_writer();
    }

    /// A generation may be read no more, or again.
    pub(super) fn permit(&mut self) {
        let mut disk = self.disk.lock();
        let files: Vec<u64> = disk
            .names
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(inode) if path.starts_with("/log") && *path != self.real => Some(*inode),
                Node::File(_) | Node::Link(..) | Node::Pipe => None,
            })
            .collect();
        drop(disk);
        if files.is_empty() {
            return;
        }
        let inode = files[self.below(files.len())];
        disk = self.disk.lock();
        let file = disk.files.get_mut(&inode).unwrap();
        file.is_unreadable = !file.is_unreadable;
        drop(disk);
        // What could not be read when the stream began is not known to have been there before.
        for token in self.tokens_of(inode) {
            if self.forbidden.remove(&token) {
                self.free.insert(token);
            }
        }
    }

    /// Somebody changes a generation's time.
    pub(super) fn touch(&mut self) {
        let count = self.disk.lock().names.len();
        let place = self.below(count);
        let mut disk = self.disk.lock();
        let clock = disk.clock;
        if let Some(Node::File(inode)) = disk.names.values().nth(place).cloned()
            && let Some(file) = disk.files.get_mut(&inode)
        {
            file.modified = clock;
        }
    }

    /// The file system goes away, or comes back.
    pub(super) fn mount(&mut self) {
        let back = core::mem::take(&mut self.unmounted);
        let mut disk = self.disk.lock();
        if back.is_empty() && self.reopen_in.is_none() {
            disk.is_away = true;
            let is_on_it = |path: &PathBuf, _: &mut Node| {
                path.starts_with("/log") || path.starts_with("/pods")
            };
            self.unmounted = disk.names.extract_if(.., is_on_it).collect();
        } else {
            disk.names.extend(back);
            disk.is_away = false;
        }
        drop(disk);
        self.say(&format!("  mounted: {}", self.unmounted.is_empty()));
    }

    /// A file of a few bytes, some of them zeros.
    pub(super) fn make_tiny(&mut self) {
        if !self.unmounted.is_empty() {
            return;
        }
        let len = 1 + self.below(20);
        let zeros = self.below(3);
        let mut bytes: Vec<u8> = (0..len)
            .map(|at| match at % 2 == 1 && zeros > 0 {
                true => 0,
                false => b'a' + u8::try_from(at).unwrap(),
            })
            .collect();
        if zeros == 2 {
            bytes.push(b'\n');
        }
        let path = format!("/log/tiny/{}.log", self.tiny.len());
        let inode = self.create(&path);
        self.disk.lock().write(inode, 0, &bytes);
        self.tiny.push((path.into(), bytes));
    }
}

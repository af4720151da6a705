//! One world: what happens in it, and what must be true at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::agent::Agent;
use super::disk::{Node, SimDisk};
use super::tokens::tokens_in;
use crate::clock;

/// How files are rotated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// `app.log.1` and so on; compressed from the second on.
    Numbers { packs: bool, creates: bool },
    /// `app.log-20261128`, by a clock that may step.
    Dates,
    /// `app.log.2026-11-28T03:04:05Z`.
    Times,
    /// `app.log.old`.
    Old,
    /// `app-word.log`, which the glob names too.
    Words,
    /// Copied to `app.log.1`, then truncated.
    Copies,
    /// A link to a file elsewhere, which is rotated there.
    Kubernetes,
    /// A link that is switched between two files.
    Switched,
    /// Not at all: written anew under another number, as rsync and `sed -i` do.
    Rewritten,
}

/// When the program opens the new file after a rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reopens {
    AtOnce,
    Later,
    Never,
}

pub(super) struct World {
    pub(super) random: u64,
    pub(super) says: bool,
    pub(super) way: Way,
    pub(super) reopens: Reopens,
    /// The program lays out so many bytes of zeros before it writes; whether it writes them.
    pub(super) room: Option<(usize, bool)>,
    /// Files fit for what a clock says.
    pub(super) steps_clock: bool,
    pub(super) disk: SimDisk,
    pub(super) agent: Agent,
    pub(super) now: Instant,
    /// The stream's path, and where the program's file is.
    pub(super) path: PathBuf,
    pub(super) real: PathBuf,
    /// The file the program has open, and where it writes in it.
    pub(super) writer: Option<(u64, usize)>,
    /// It is to be opened anew after so many steps.
    pub(super) reopen_in: Option<u32>,
    /// Tokens: the file of each, and when they were written.
    pub(super) tokens: Vec<u64>,
    pub(super) written_at: Vec<Instant>,
    /// What may be missing if a gap entry says so, and what must not be there.
    pub(super) losable: BTreeSet<usize>,
    pub(super) forbidden: BTreeSet<usize>,
    /// Of files that were rotated before anything of the stream arrived: nobody knows that they were not there before.
    pub(super) free: BTreeSet<usize>,
    /// Files that were there when the agent looked: of others it knows nothing.
    pub(super) looked_at: BTreeSet<u64>,
    pub(super) serial: u64,
    pub(super) serials: BTreeMap<u64, u64>,
    /// Files that have names for a while no more.
    pub(super) unmounted: Vec<(PathBuf, Node)>,
    pub(super) tiny: Vec<(PathBuf, Vec<u8>)>,
    pub(super) rotations: u32,
    /// Files are copied, and never truncated.
    pub(super) only_copies: bool,
    /// What a copy holds that was made before more was read of its file; and what may be collected twice for that.
    pub(super) part: Vec<usize>,
    pub(super) repeatable: BTreeSet<usize>,
    /// Files that were lost before anything of them was read, by their numbers.
    pub(super) lost: BTreeMap<u64, Vec<usize>>,
    /// What compressed files hold.
    pub(super) packed: BTreeMap<u64, Vec<usize>>,
}

fn exact(path: &Path) -> bool {
    path == Path::new("/log/app.log") || path.parent() == Some(Path::new("/log/tiny"))
}

fn logs(path: &Path) -> bool {
    path.starts_with("/log") && path.extension().is_some_and(|extension| extension == "log")
}

fn all(path: &Path) -> bool {
    path.starts_with("/log") && path.extension().is_none_or(|extension| extension != "gz")
}

impl World {
    pub(super) fn new(seed: u64, runtime: tokio::runtime::Handle, says: bool) -> Self {
        let disk = SimDisk::default();
        disk.lock().clock = Duration::from_secs(1_795_000_000);
        let mut world = Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            says,
            way: Way::Old,
            reopens: Reopens::AtOnce,
            room: None,
            steps_clock: false,
            agent: Agent::new(disk.clone(), exact, runtime.clone()),
            disk: disk.clone(),
            now: clock::now(),
            path: "/log/app.log".into(),
            real: "/log/app.log".into(),
            writer: None,
            reopen_in: None,
            tokens: Vec::new(),
            written_at: Vec::new(),
            losable: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            free: BTreeSet::new(),
            looked_at: BTreeSet::new(),
            serial: 0,
            serials: BTreeMap::new(),
            unmounted: Vec::new(),
            tiny: Vec::new(),
            rotations: 0,
            only_copies: false,
            part: Vec::new(),
            repeatable: BTreeSet::new(),
            lost: BTreeMap::new(),
            packed: BTreeMap::new(),
        };
        for _ in 0..4 {
            world.below(2);
        }
        world.way = match world.below(12) {
            0 | 1 => Way::Numbers {
                packs: false,
                creates: true,
            },
            2 => Way::Numbers {
                packs: true,
                creates: true,
            },
            3 => Way::Numbers {
                packs: world.chance(2),
                creates: false,
            },
            4 => Way::Dates,
            5 => Way::Times,
            6 => Way::Old,
            7 => Way::Words,
            8 => Way::Copies,
            9 => Way::Kubernetes,
            10 => Way::Switched,
            _ => Way::Rewritten,
        };
        world.reopens = match world.below(5) {
            0 => Reopens::Never,
            1 | 2 => Reopens::Later,
            _ => Reopens::AtOnce,
        };
        if world.chance(6) && world.way != Way::Copies {
            let len = [700, 4096, 8192, 10_000][world.below(4)]; // some of no disk's size
            world.room = Some((len, world.chance(2)));
        }
        world.steps_clock = world.chance(3);
        // That a copy is younger than its file shows only where clocks go on.
        world.only_copies = world.way == Way::Copies && !world.steps_clock && world.chance(4);
        let (way, collects_all) = (world.way, world.chance(2));
        let wanted = match way {
            Way::Words | Way::Switched => logs,
            Way::Kubernetes => match collects_all {
                true => logs,
                false => exact,
            },
            Way::Numbers { creates: true, .. } | Way::Old | Way::Times if collects_all => all,
            Way::Numbers { .. }
            | Way::Dates
            | Way::Times
            | Way::Old
            | Way::Copies
            | Way::Rewritten => exact,
        };
        world.agent = Agent::new(disk, wanted, runtime);
        let collects_all = wanted(Path::new("/log/app.log.1"));
        world.prepare(collects_all);
        if world.says {
            println!(
                "{:?} {:?} room {:?} clock {} all {}",
                world.way, world.reopens, world.room, world.steps_clock, collects_all
            );
        }
        world
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }

    /// One time in so many.
    pub(super) fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub(super) fn say(&self, what: &str) {
        if self.says {
            println!("{what}");
        }
    }

    /// What is there before the agent, and before the program.
    fn prepare(&mut self, collects_all: bool) {
        let numbered = matches!(self.way, Way::Numbers { .. });
        if numbered && self.chance(2) {
            for n in 1..3 {
                let before = self.tokens.len();
                let inode = self.create(&format!("/log/app.log.{n}"));
                self.write_to(inode, 2);
                if self.steps_clock {
                    // By such a clock nobody knows what was there before.
                    self.free.extend(before..self.tokens.len());
                } else if !collects_all {
                    self.forbidden.extend(before..self.tokens.len());
                }
            }
            self.disk.lock().clock += Duration::from_secs(5);
        }
        match self.way {
            Way::Kubernetes => {
                self.real = match self.chance(2) {
                    true => "/log/pods/0.log".into(), // the glob may name it too
                    false => "/pods/0.log".into(),
                };
                let link = Node::Link(self.real.clone(), 0);
                self.disk.lock().names.insert(self.path.clone(), link);
            }
            Way::Switched => {
                self.real = "/data/blue.txt".into();
                self.create("/data/green.txt");
                let link = Node::Link(self.real.clone(), 0);
                self.disk.lock().names.insert(self.path.clone(), link);
            }
            Way::Numbers { .. }
            | Way::Dates
            | Way::Times
            | Way::Old
            | Way::Words
            | Way::Copies
            | Way::Rewritten => {}
        }
        // What only root may read, and a user's link to it.
        let before = self.tokens.len();
        let secret = self.create("/secret");
        self.write_to(secret, 1);
        self.forbidden.extend(before..self.tokens.len());
        let link = Node::Link("/secret".into(), 1000);
        self.disk
            .lock()
            .names
            .insert("/log/tiny/secret.log".into(), link);
        self.disk
            .lock()
            .names
            .insert("/log/tiny/pipe.log".into(), Node::Pipe);
        self.open_writer();
    }

    pub(super) fn create(&mut self, path: &str) -> u64 {
        let inode = self.disk.lock().create(Path::new(path));
        self.packed.remove(&inode);
        // Of an empty file the number is all that is known: given to another, it says that nothing is missing.
        self.free
            .extend(self.lost.remove(&inode).unwrap_or_default());
        self.serial += 1;
        self.serials.insert(inode, self.serial);
        inode
    }

    /// The program opens its path, and makes the file if there is none.
    pub(super) fn open_writer(&mut self) {
        self.reopen_in = None;
        let real = self.real.clone();
        let there = self.disk.lock().inode(&real);
        let inode = there.unwrap_or_else(|| self.create(real.to_str().unwrap()));
        let mut disk = self.disk.lock();
        if let Some((old, _)) = self.writer {
            disk.hold(old, -1);
        }
        disk.hold(inode, 1);
        // Where its lines end.
        let bytes = &disk.files[&inode].bytes;
        let text = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let at = match self.room {
            Some(_) => text,
            None => bytes.len(),
        };
        self.writer = Some((inode, at));
    }

    pub(super) fn write_to(&mut self, inode: u64, count: usize) {
        for _ in 0..count {
            let serial = self.serials[&inode];
            let token = self.tokens.len();
            self.tokens.push(serial);
            self.written_at.push(self.now);
            let filler = [
                "",
                " and more",
                " of what the program does all day, which is little and takes long",
            ];
            let mut text = format!("[{token}]{}", filler[self.below(3)]);
            if !self.chance(8) {
                text.push('\n');
            }
            let mut disk = self.disk.lock();
            match (&mut self.writer, self.room) {
                (Some((own, at)), Some((room, writes))) if *own == inode => {
                    let len = disk.files[&inode].bytes.len();
                    if *at + text.len() > len {
                        let end = (*at + text.len()).next_multiple_of(room);
                        let zeros = vec![0; end - len];
                        disk.write(inode, len, &zeros);
                        let file = disk.files.get_mut(&inode).unwrap();
                        file.hole_from = (!writes).then_some(*at);
                    }
                    disk.write(inode, *at, text.as_bytes());
                    *at += text.len();
                }
                (_, _) => {
                    let len = disk.files[&inode].bytes.len();
                    disk.write(inode, len, text.as_bytes());
                }
            }
        }
    }

    fn write(&mut self) {
        let count = 1 + self.below(4);
        if let Some((inode, _)) = self.writer {
            self.say(&format!(
                "  writes {count} from [{}] to {inode}",
                self.tokens.len()
            ));
            self.write_to(inode, count);
            let is_elsewhere = self.disk.lock().inode(&self.path) != Some(inode);
            let is_early = is_elsewhere && self.was_there_before(inode);
            if is_early || !self.is_reachable(inode) {
                self.lose(inode);
            }
        }
    }

    pub(super) fn named(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.real.display()))
    }

    fn step(&mut self) {
        if let Some(left) = self.reopen_in {
            self.reopen_in = left.checked_sub(1);
            if self.reopen_in.is_none() {
                self.open_writer();
            }
        }
        match self.below(30) {
            0..=9 => self.write(),
            10..=12 => self.rotate(),
            13 => {
                self.rotate();
                self.write();
                self.rotate();
            }
            14 if self.agent.is_running() => {
                let delivered = self.below(8);
                self.say(&format!("  the agent dies, {delivered} batches arrive"));
                self.repeatable.append(&mut self.part.drain(..).collect());
                self.agent.stop(delivered);
            }
            15 if self.agent.is_running() => {
                self.say("  the agent stops");
                self.repeatable.append(&mut self.part.drain(..).collect());
                self.agent.stop(usize::MAX);
            }
            14..=18 if !self.agent.is_running() => {
                self.say("  the agent starts");
                self.agent.start();
            }
            19 if self.steps_clock => {
                let wall = [1_795_000_000 - 14_400, 3600, 1_795_100_000][self.below(3)];
                self.say(&format!("  the clock is {wall}"));
                self.disk.lock().clock = Duration::from_secs(wall);
            }
            20 => self.permit(),
            21 => self.touch(),
            22 => self.mount(),
            23 if self.tiny.len() < 2 => self.make_tiny(),
            24 if self.way == Way::Kubernetes && self.real.starts_with("/log") => {
                let link = Node::Link(self.real.clone(), 0);
                let mut disk = self.disk.lock();
                if disk.names.remove(&self.path).is_none() {
                    disk.names.insert(self.path.clone(), link);
                }
            }
            _ => {}
        }
        let passed = match self.below(12) {
            0 => Duration::from_secs(70),
            1 => Duration::from_secs(8),
            _ => Duration::from_millis(100 + self.below(2000) as u64),
        };
        self.pass_time(passed);
        if self.agent.is_running() && !self.chance(4) {
            let parks = self.chance(6);
            self.look(parks);
            // The spool is full at times.
            let taken = match self.chance(4) {
                true => self.below(2),
                false => 1000,
            };
            self.agent.deliver(taken);
            self.say(&format!("pass, {taken} taken: {:?}", self.arrived()));
        }
    }

    /// The agent looks.
    pub(super) fn look(&mut self, parks: bool) {
        let inodes: Vec<u64> = self.disk.lock().files.keys().copied().collect();
        let serials = inodes.iter().filter_map(|inode| self.serials.get(inode));
        self.looked_at.extend(serials);
        // Who has no room sees nothing.
        let before = core::mem::take(&mut self.part);
        if !self.agent.pass(self.now, parks) {
            self.part = before;
        }
    }

    fn pass_time(&mut self, passed: Duration) {
        self.now += passed;
        self.disk.lock().clock += passed;
    }

    pub(super) fn live(&mut self) -> Result<(), String> {
        let steps = 20 + self.below(40);
        for step in 0..steps {
            if self.says {
                println!("step {step}");
            }
            self.step();
        }
        // At last everything may be read, and there is time.
        if !self.unmounted.is_empty() {
            self.mount();
        }
        if self.way == Way::Kubernetes {
            let link = Node::Link(self.real.clone(), 0);
            self.disk
                .lock()
                .names
                .entry(self.path.clone())
                .or_insert(link);
        }
        for file in self.disk.lock().files.values_mut() {
            file.is_unreadable = false;
        }
        if !self.agent.is_running() {
            self.agent.start();
        }
        for _ in 0..20 {
            self.pass_time(Duration::from_millis(3100));
            self.agent.pass(self.now, false);
            self.agent.deliver(1000);
        }
        if self.says {
            let disk = self.disk.lock();
            for (path, node) in &disk.names {
                let of = |inode| tokens_in(&disk.files[inode].bytes);
                match node {
                    Node::File(inode) => println!("{} {inode}: {:?}", path.display(), of(inode)),
                    Node::Link(..) | Node::Pipe => println!("{} {node:?}", path.display()),
                }
            }
            for (name, archived) in &self.agent.archive {
                println!(
                    "{name}: {:?} {:#?}",
                    tokens_in(&archived.bytes),
                    archived.gaps
                );
            }
        }
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        let way = self.way;
        let mut times = vec![0; self.tokens.len()];
        let mut gaps = 0;
        for (name, archived) in &self.agent.archive {
            gaps += archived.gaps.len();
            let mut last: BTreeMap<u64, usize> = BTreeMap::new();
            for token in tokens_in(&archived.bytes) {
                let Some(seen) = times.get_mut(token) else {
                    return Err(format!("{way:?}: [{token}] was never written"));
                };
                *seen += 1;
                let before = last.insert(self.tokens[token], token);
                let is_repeated = self.repeatable.contains(&token);
                if before.is_some_and(|before| before > token) && !is_repeated {
                    return Err(format!("{way:?}: [{token}] out of its order in {name}"));
                }
            }
        }
        for (token, times) in times.into_iter().enumerate() {
            if self.forbidden.contains(&token) {
                if times > 0 {
                    return Err(format!("{way:?}: [{token}] must not be collected"));
                }
            } else if times > 1 && !self.repeatable.contains(&token) {
                return Err(format!("{way:?}: [{token}] was collected {times} times"));
            } else if times == 0 && self.free.contains(&token) {
            } else if times == 0 && !self.losable.contains(&token) {
                return Err(format!("{way:?}: [{token}] is missing; {gaps} gap entries"));
            } else if times == 0 && gaps == 0 {
                return Err(format!("{way:?}: [{token}] is missing and nothing says so"));
            }
        }
        for (path, bytes) in &self.tiny {
            let archived = self.agent.archive.get(path.to_str().unwrap());
            let archived = archived.map_or(&[][..], |archived| &archived.bytes);
            if archived != bytes {
                return Err(format!(
                    "{} has {bytes:?}, arrived {archived:?}",
                    path.display()
                ));
            }
        }
        Ok(())
    }
}

//! Which file systems are walked: those of local disks and memory. What the kernel makes up, and what another machine
//! holds, is walked only when a source names something in it: the first has no logs and no end, the second may
//! answer late or never.
//!
//! Linux says what is mounted where without touching it (proc_pid_mountinfo(5)). Other systems are not asked: every
//! file system counts as local there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is mounted where.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    kinds: BTreeMap<PathBuf, String>,
}

impl Mounts {
    /// As it is now.
    pub(super) fn read() -> Self {
        #[cfg(target_os = "linux")]
        return std::fs::read("/proc/self/mountinfo")
            .map_or_else(|_| Self::default(), |text| Self::parse(&text));
        #[cfg(not(target_os = "linux"))]
        Self::default()
    }

    /// `36 35 98:0 /of/the/fs /mount/point rw,noatime master:1 - ext3 /dev/root rw`
    #[cfg(any(test, target_os = "linux"))]
    fn parse(text: &[u8]) -> Self {
        let mounts = text.split(|&byte| byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let point = fields.nth(4)?;
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            Some((unescaped(point), String::from_utf8_lossy(kind).into_owned()))
        });
        // What was mounted later hides what was there before.
        Self {
            kinds: mounts.collect(),
        }
    }

    /// Where the file system of a path begins, and its kind. The path has no links in it.
    fn of(&self, path: &Path) -> Option<(&Path, &str)> {
        path.ancestors().find_map(|ancestor| {
            let (point, kind) = self.kinds.get_key_value(ancestor)?;
            Some((&**point, &**kind))
        })
    }

    /// The kind of the file system that `path` lies on, when it is not one to walk and not the one of `named`. The paths
    /// have no links in them.
    pub(super) fn foreign(&self, path: &Path, named: &Path) -> Option<&str> {
        let (point, kind) = self.of(path)?;
        let is_named = self.of(named).is_some_and(|(own, _)| own == point);
        (!is_named && is_foreign(kind)).then_some(kind)
    }
}

/// Blanks and the like in a path are written as three octal digits.
#[cfg(any(test, target_os = "linux"))]
fn unescaped(field: &[u8]) -> PathBuf {
    use std::ffi::OsString;
    #[cfg(unix)]
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let digits = after.split_first_chunk::<3>();
        let escaped = digits
            .filter(|_| first == b'\\')
            .and_then(|(digits, after)| {
                let digits = str::from_utf8(digits).ok()?;
                Some((u8::from_str_radix(digits, 8).ok()?, after))
            });
        match escaped {
            Some((byte, after)) => {
                bytes.push(byte);
                rest = after;
            }
            None => bytes.push(first),
        }
    }
    #[cfg(unix)]
    return OsString::from_vec(bytes).into();
    #[cfg(not(unix))]
    OsString::from(String::from_utf8_lossy(&bytes).into_owned()).into()
}

fn is_foreign(kind: &str) -> bool {
    kind.starts_with("fuse.") || FOREIGN.contains(&kind)
}

/// First what the kernel makes up, then what lies elsewhere or is served by a program. `fuseblk` is a local disk.
const FOREIGN: [&str; 41] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
    "9p",
    "acfs",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "davfs",
    "fuse",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "nfsd",
    "smb3",
    "smbfs",
    "vboxsf",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_and_distant_file_systems_are_foreign_unless_a_source_names_something_in_them() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            23 22 0:5 / /proc rw shared:1 - proc proc rw\n\
            24 22 0:6 / /srv/two\\040words rw master:1 shared:2 - nfs4 host:/x rw\n\
            25 22 8:2 / /var/log rw - xfs /dev/sdb rw\n\
            26 25 0:7 / /var/log/app rw - tmpfs none rw\n\
            27 22 0:8 / /mnt rw - nfs host:/y rw\n\
            28 27 0:9 / /mnt rw - ext4 /dev/sdc rw\n\
            29 22 0:9 / /home/x rw - fuse.sshfs host:/y rw\n\
            30 22 0:9 / /home/usb rw - fuseblk /dev/sdd rw\n\
            not a line\n";
        let mounts = Mounts::parse(text);
        let foreign = |path: &str, named: &str| {
            let kind = mounts.foreign(Path::new(path), Path::new(named));
            kind.map(str::to_owned)
        };
        assert_eq!(foreign("/proc/1/task", "/var/log").unwrap(), "proc");
        assert_eq!(foreign("/srv/two words/a", "/srv").unwrap(), "nfs4");
        assert_eq!(foreign("/home/x", "/home").unwrap(), "fuse.sshfs");
        for (path, named) in [
            ("/proc/1", "/proc/self"),
            ("/srv/two words/a/b", "/srv/two words/a"),
            ("/var/log/app/x", "/var/log"),
            ("/mnt/log", "/"),
            ("/home/usb", "/home"),
            ("/process", "/var"),
        ] {
            assert_eq!(foreign(path, named), None, "{path}");
        }
        assert_eq!(
            Mounts::default().foreign(Path::new("/proc"), Path::new("/")),
            None
        );
    }
}

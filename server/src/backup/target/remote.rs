//! A directory of another machine, over this machine's own `ssh`: its keys, known hosts and jumps are those of the
//! user the server runs as, or of the file that `SCRINIUM_SSH_CONFIG` names.

use std::collections::BTreeMap;
use std::fs::File as LocalFile;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use openssh_sftp_client::error::SftpErrorKind;
use openssh_sftp_client::file::{File, TokioCompatFile};
use openssh_sftp_client::{Error, Sftp, SftpOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr, Command};
use tokio::runtime::Runtime;

use super::{COPY_LEN, PART, Place, check_listed, runtime};

/// Objects are files.
pub(super) struct Remote {
    sftp: Sftp,
    dir: PathBuf,
    runtime: Runtime,
    /// Killed when this is dropped.
    _ssh: Child,
}

impl Remote {
    pub(super) fn open(
        user: Option<&str>,
        host: &str,
        port: Option<u16>,
        dir: &Path,
    ) -> Result<Self> {
        let runtime = runtime()?;
        let mut command = Command::new("ssh");
        if let Some(config) = std::env::var_os(CONFIG_VARIABLE) {
            command.arg("-F").arg(config);
        }
        command.args(OPTIONS);
        if let Some(port) = port {
            command.args(["-p", &port.to_string()]);
        }
        if let Some(user) = user {
            command.args(["-l", user]);
        }
        command.args(["-s", "--", host, "sftp"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let begun = runtime.block_on(async {
            let mut ssh = command.spawn().context("starting ssh")?;
            let stdin = ssh.stdin.take().context("the pipe to ssh")?;
            let stdout = ssh.stdout.take().context("the pipe from ssh")?;
            let stderr = ssh.stderr.take().context("what ssh says")?;
            let said = tokio::spawn(last_words(stderr));
            match in_time(Sftp::new(stdin, stdout, SftpOptions::default())).await {
                Ok(sftp) => Ok((sftp, ssh)),
                Err(error) => {
                    drop(ssh.start_kill());
                    let said = said.await.unwrap_or_default();
                    let said = said.lines().last().unwrap_or_default().trim().to_owned();
                    Err(error.context(format!("ssh says: {said}")))
                }
            }
        });
        let (sftp, ssh) = begun.with_context(|| format!("reaching {host}"))?;
        Ok(Self {
            sftp,
            dir: dir.to_owned(),
            runtime,
            _ssh: ssh,
        })
    }

    /// Opens a file to be written anew, whose directories may be missing.
    async fn create(&self, path: &Path) -> Result<File> {
        match in_time(self.sftp.create(path)).await {
            Err(error) if is_missing(&error) => {
                let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
                parents.reverse();
                for parent in parents {
                    // That it exists is what is wanted; if it does not now, the file says so.
                    drop(in_time(self.sftp.fs().create_dir(parent)).await);
                }
                in_time(self.sftp.create(path)).await
            }
            created => created,
        }
    }

    async fn send(&self, from: &Path, to: &Path) -> Result<()> {
        let mut source = LocalFile::open(from)?;
        let mut part = to.as_os_str().to_owned();
        part.push(PART);
        let part = PathBuf::from(part);
        let file = TokioCompatFile::new(self.create(&part).await?);
        tokio::pin!(file);
        let mut buffer = vec![0; COPY_LEN];
        loop {
            let read = source.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            in_time(file.write_all(buffer.get(..read).unwrap_or_default())).await?;
        }
        in_time(file.flush()).await?;
        if self.sftp.support_fsync() {
            in_time(file.as_mut().as_mut_file().sync_all()).await?;
        }
        in_time(file.shutdown()).await?;
        let mut fs = self.sftp.fs();
        if !self.sftp.support_posix_rename() {
            match in_time(fs.remove_file(to)).await {
                Err(error) if !is_missing(&error) => return Err(error),
                _ => {}
            }
        }
        in_time(fs.rename(part, to)).await
    }
}

impl Place for Remote {
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let dir = self.dir.join(prefix);
        self.runtime.block_on(async {
            let opened = match in_time(self.sftp.fs().open_dir(&dir)).await {
                Err(error) if is_missing(&error) => return Ok(BTreeMap::new()),
                opened => opened?,
            };
            let listed = opened.read_dir();
            tokio::pin!(listed);
            let mut found = BTreeMap::new();
            while let Some(entry) = in_time(listed.try_next()).await? {
                let Some(name) = entry.filename().to_str() else {
                    continue;
                };
                let is_file = entry.file_type().is_some_and(|kind| kind.is_file());
                let is_whole = is_file && !name.ends_with(PART);
                if let Some(len) = entry.metadata().len().filter(|_| is_whole) {
                    found.insert(format!("{prefix}/{name}"), len);
                }
                check_listed(found.len())?;
            }
            Ok(found)
        })
    }

    fn put(&self, name: &str, from: &Path) -> Result<()> {
        self.runtime.block_on(self.send(from, &self.dir.join(name)))
    }

    fn read(&self, name: &str, sink: &mut dyn Write) -> Result<()> {
        self.runtime.block_on(async {
            let file = in_time(self.sftp.open(self.dir.join(name))).await?;
            let file = TokioCompatFile::new(file);
            tokio::pin!(file);
            let mut buffer = vec![0; COPY_LEN];
            loop {
                let read = in_time(file.read(&mut buffer)).await?;
                if read == 0 {
                    return Ok(());
                }
                sink.write_all(buffer.get(..read).unwrap_or_default())?;
            }
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        match self
            .runtime
            .block_on(in_time(self.sftp.fs().remove_file(path)))
        {
            Err(error) if !is_missing(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Waits for an answer, not for ever.
async fn in_time<T, E: Into<anyhow::Error>>(
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
    answer
        .context("it did not answer in time")?
        .map_err(Into::into)
}

fn is_missing(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<Error>();
    matches!(error, Some(Error::SftpError(SftpErrorKind::NoSuchFile, _)))
}

/// What ssh says, as much of it as an error has room for.
async fn last_words(mut stderr: ChildStderr) -> String {
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        said.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let many = said.len().saturating_sub(SAID_LEN_MAX);
        said.drain(..many);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Never asks a person, and gives up when nothing is heard for a minute.
const OPTIONS: [&str; 8] = [
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=30",
    "-o",
    "ServerAliveInterval=15",
    "-o",
    "ServerAliveCountMax=4",
];
const CONFIG_VARIABLE: &str = "SCRINIUM_SSH_CONFIG";
/// For one answer of the other side.
const ANSWER_MAX: Duration = Duration::from_secs(120);
const SAID_LEN_MAX: usize = 4096;

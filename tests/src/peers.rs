//! Programs of others that the server talks with. Each ends with the test.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{free_address, text};
use crate::{has_tool, skipped, wait_until};

/// A program from PyPI, which `tests/run.sh` installs; says so when it is not there.
#[must_use]
pub fn python_tool(name: &str) -> Option<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/interop/bin");
    let path = PathBuf::from(root).join(name);
    if !path.is_file() {
        skipped(&format!(
            "{name} is not installed in target/interop; tests/run.sh does that"
        ));
        return None;
    }
    Some(path)
}

/// A process that listens.
struct Listener {
    child: Child,
    address: SocketAddr,
}

impl Listener {
    fn start(command: &mut Command, address: SocketAddr, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap();
        let own = Self { child, address };
        wait_until("a peer listens", Duration::from_secs(60), || {
            TcpStream::connect(own.address).is_ok()
        });
        own
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// An S3 of our own: moto's.
pub struct ObjectStore {
    listener: Listener,
}

impl ObjectStore {
    /// Starts one with a bucket `logs`, if it is installed.
    #[must_use]
    pub fn start(dir: &Path) -> Option<Self> {
        let server = python_tool("moto_server")?;
        if !has_tool("curl") {
            return None;
        }
        let address = free_address();
        let mut command = Command::new(server);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let listener = Listener::start(&mut command, address, &dir.join("moto.out"));
        let own = Self { listener };
        own.put("logs", b"");
        Some(own)
    }

    /// What a program must have in its environment to find it.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT_URL", self.url("")),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "scrinium".into()),
            ("AWS_SECRET_ACCESS_KEY", "of-the-test".into()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Reads an object, or what a bucket holds: `BUCKET/KEY` or `BUCKET`.
    #[must_use]
    pub fn get(&self, path: &str) -> Vec<u8> {
        curl(&[&self.url(path)], b"")
    }

    /// Writes an object, or makes a bucket.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let kind = "content-type: application/octet-stream";
        let words = ["-X", "PUT", "--data-binary", "@-", "-H", kind];
        let _answer = curl(&[&words[..], &[&self.url(path)]].concat(), bytes);
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.listener.address)
    }
}

fn curl(words: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3"]);
    command.args(["--user", "scrinium:of-the-test"]).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "curl {words:?}");
    output.stdout
}

/// A machine that is reached over ssh: this one, by an sshd of our own.
pub struct SshServer {
    listener: Listener,
    dir: PathBuf,
}

impl SshServer {
    /// Starts one that lets in who has the key it makes, if sshd is installed.
    #[must_use]
    pub fn start(dir: &Path) -> Option<Self> {
        if !has_tool("sshd") || !has_tool("ssh-keygen") {
            return None;
        }
        let dir = dir.join("ssh");
        std::fs::create_dir(&dir).unwrap();
        for name in ["host", "own", "stranger"] {
            let file = dir.join(name);
            let mut command = Command::new("ssh-keygen");
            command
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(file);
            assert!(command.status().unwrap().success());
        }
        let address = free_address();
        let at = dir.display();
        let config = format!(
            "HostKey {at}/host\nAuthorizedKeysFile {at}/own.pub\nStrictModes no\nPidFile none\n\
             ListenAddress {address}\nSubsystem sftp internal-sftp\n"
        );
        write(&dir.join("sshd_config"), &config);
        let host = std::fs::read_to_string(dir.join("host.pub")).unwrap();
        let known = format!("[127.0.0.1]:{} {host}", address.port());
        write(&dir.join("known_hosts"), &known);
        for name in ["own", "stranger"] {
            let config = format!(
                "IdentityFile {at}/{name}\nIdentitiesOnly yes\nUserKnownHostsFile {at}/known_hosts\n"
            );
            write(&dir.join(format!("{name}.config")), &config);
        }
        // What its package makes when the system boots.
        let _there = std::fs::create_dir("/run/sshd");
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-De").arg("-f").arg(dir.join("sshd_config"));
        let listener = Listener::start(&mut command, address, &dir.join("sshd.out"));
        Some(Self { listener, dir })
    }

    /// Where a directory of it is, for whoever goes there over ssh.
    #[must_use]
    pub fn location(&self, dir: &Path) -> String {
        let who = Command::new("id").arg("-un").output().unwrap();
        let (who, port) = (text(&who.stdout), self.listener.address.port());
        format!("sftp://{}@127.0.0.1:{port}{}", who.trim(), dir.display())
    }

    /// What a program must have in its environment to be let in; a `stranger` is not.
    #[must_use]
    pub fn environment(&self, name: &str) -> (String, String) {
        let config = self.dir.join(format!("{name}.config"));
        ("SCRINIUM_SSH_CONFIG".into(), config.display().to_string())
    }
}

/// Somebody's mailbox, behind a relay that insists on TLS.
pub struct MailServer {
    listener: Option<Listener>,
    address: SocketAddr,
    dir: PathBuf,
}

impl MailServer {
    /// Makes its certificate; it does not listen yet. None if its program is not installed.
    #[must_use]
    pub fn new(dir: &Path) -> Option<Self> {
        python_tool("aiosmtpd")?;
        if !has_tool("openssl") {
            return None;
        }
        let dir = dir.join("mail");
        std::fs::create_dir(&dir).unwrap();
        let mut command = Command::new("openssl");
        let words = "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out certificate.pem -days 10 \
                     -subj /CN=localhost -addext subjectAltName=DNS:localhost \
                     -addext basicConstraints=critical,CA:FALSE";
        command.args(words.split_whitespace()).current_dir(&dir);
        assert!(command.output().unwrap().status.success());
        let address = free_address();
        Some(Self {
            listener: None,
            address,
            dir,
        })
    }

    /// Takes mail from now on.
    pub fn listen(&mut self) {
        let mut command = Command::new(python_tool("aiosmtpd").unwrap());
        command
            .args(["-n", "-l", &self.address.to_string()])
            .args(["--tlscert", "certificate.pem", "--tlskey", "key.pem"])
            .args(["-c", "aiosmtpd.handlers.Mailbox", "box"])
            .current_dir(&self.dir);
        let log = self.dir.join("aiosmtpd.out");
        self.listener = Some(Listener::start(&mut command, self.address, &log));
    }

    /// The relay, for the configuration.
    #[must_use]
    pub fn url(&self) -> String {
        let port = self.address.port();
        format!("smtp://localhost:{port}?tls=required")
    }

    /// What a program must have in its environment to trust it.
    #[must_use]
    pub fn environment(&self) -> (String, String) {
        let certificate = self.dir.join("certificate.pem");
        ("SSL_CERT_FILE".into(), certificate.display().to_string())
    }

    /// The letters it has.
    #[must_use]
    pub fn letters(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.join("box/new"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// Writes what is enclosed in a letter into a directory, which it makes.
    pub fn open(letter: &Path, dir: &Path) {
        std::fs::create_dir(dir).unwrap();
        let script = "import email, email.policy, pathlib, sys\n\
            message = email.message_from_bytes(pathlib.Path(sys.argv[1]).read_bytes(), policy=email.policy.default)\n\
            for part in message.iter_attachments():\n\
            \x20   (pathlib.Path(sys.argv[2]) / part.get_filename()).write_bytes(part.get_payload(decode=True))\n\
            (pathlib.Path(sys.argv[2]) / 'text').write_text(message.get_body().get_content())\n\
            (pathlib.Path(sys.argv[2]) / 'subject').write_text(message['subject'])\n";
        let mut command = Command::new(python_tool("python").unwrap());
        command.args(["-c", script]).arg(letter).arg(dir);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

fn write(path: &Path, content: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

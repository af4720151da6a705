//! Somebody who signed in to the console, without a browser.

use std::path::Path;
use std::process::{Child, Command};

use crate::lab::{Lab, text};

/// A session of somebody who signed in.
#[derive(Debug)]
pub struct Console {
    address: String,
    cookies: String,
    language: &'static str,
}

impl Console {
    /// Signs the administrator in; takes curl.
    #[must_use]
    pub fn sign_in(lab: &Lab, password: &str) -> Self {
        Self::sign_in_as(lab, "admin", password)
    }

    /// Signs somebody in.
    #[must_use]
    pub fn sign_in_as(lab: &Lab, user: &str, password: &str) -> Self {
        let cookies = lab.dir.join(format!("cookies-{user}"));
        let session = Self {
            address: format!("https://{}", lab.console),
            cookies: cookies.to_str().unwrap().to_owned(),
            language: "en",
        };
        let (user, password) = (format!("user={user}"), format!("password={password}"));
        let words = [
            "--data-urlencode",
            &user,
            "--data-urlencode",
            &password,
            "-c",
            &session.cookies,
        ];
        let _page = session.curl("/sign-in", &words);
        session
    }

    /// The same session in a browser that wants another language.
    #[must_use]
    pub fn in_language(mut self, language: &'static str) -> Self {
        self.language = language;
        self
    }

    /// A page.
    #[must_use]
    pub fn get(&self, path: &str) -> String {
        self.curl(path, &["-b", &self.cookies])
    }

    /// The status of a page that is asked for by a page's own script, or by a person.
    #[must_use]
    pub fn status(&self, path: &str, by_itself: bool) -> u16 {
        let mut words = vec!["-b", &self.cookies, "-o", "/dev/null", "-w", "%{http_code}"];
        if by_itself {
            words.extend(["-H", "x-scrinium-refresh: 1"]);
        }
        self.curl(path, &words).trim().parse().unwrap()
    }

    /// Writes what is at `path` into a file; returns the status.
    #[must_use]
    pub fn download(&self, path: &str, to: &Path) -> u16 {
        let to = to.to_str().unwrap();
        let words = ["-b", &self.cookies, "-o", to, "-w", "%{http_code}"];
        self.curl(path, &words).trim().parse().unwrap()
    }

    /// Begins to fetch what is at `path` into a file, so many bytes a second at most.
    #[must_use]
    pub fn begin(&self, path: &str, to: &Path, bytes_per_s: u32) -> Child {
        let url = format!("{}{path}", self.address);
        let rate = bytes_per_s.to_string();
        let words = ["-sk", &url, "-b", &self.cookies, "--limit-rate", &rate];
        let mut curl = Command::new("curl");
        curl.args(words).arg("-o").arg(to);
        curl.spawn().unwrap()
    }

    /// Sends the form of the page `from` to `path`; returns the status and the answer.
    #[must_use]
    pub fn post(&self, from: &str, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let page = self.get(from);
        let (_, after) = page.split_once("name=\"csrf\" value=\"").expect("a form");
        let (csrf, _) = after.split_once('"').unwrap();
        let mut words = vec![
            "-b".to_owned(),
            self.cookies.clone(),
            "-w".to_owned(),
            "\n%{http_code}".to_owned(),
        ];
        for (name, value) in [("csrf", csrf)].iter().chain(fields) {
            words.push("--data-urlencode".into());
            words.push(format!("{name}={value}"));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = self.curl(path, &words);
        let (answer, status) = said.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), answer.to_owned())
    }

    fn curl(&self, path: &str, words: &[&str]) -> String {
        let mut curl = Command::new("curl");
        let url = format!("{}{path}", self.address);
        text(
            &curl
                .args(["-sk", &url])
                .args(["-H", &format!("accept-language: {}", self.language)])
                .args(words)
                .output()
                .unwrap()
                .stdout,
        )
    }
}

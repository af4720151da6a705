//! Days that go by for the server.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use crate::lab::Lab;
use crate::refusals::Refusals;
use crate::wait_until;

/// A laboratory whose server's clock is set.
#[derive(Debug)]
pub struct Days {
    pub lab: Lab,
    refusals: Refusals,
}

impl Days {
    /// `None` where the double of the clock cannot be built.
    #[must_use]
    pub fn start(name: &str) -> Option<Self> {
        let mut lab = Lab::start(name);
        let refusals = Refusals::build(&lab.dir)?;
        lab.stop_server();
        lab.server_environment = refusals.environment().to_vec();
        lab.start_server();
        Some(Self { lab, refusals })
    }

    /// So many hours of a day pass while the server runs.
    pub fn pass_hours(&self, day: u32, hours: u32) {
        self.clocks(i64::from(day * 24 + hours), 0, "");
    }

    /// So many minutes have passed since the start.
    pub fn minutes(&self, minutes: i64) {
        let seconds = minutes * 60;
        self.refusals
            .rule(&format!("clock now {seconds}\nclock boot {seconds}"));
    }

    /// So many hours have passed, and the wall clock shows so many more. `kernel` is what it says of the wall clock:
    /// `kept`, `loose`, or what this machine's says.
    pub fn clocks(&self, hours: i64, wrong_hours: i64, kernel: &str) {
        let (now, boot) = ((hours + wrong_hours) * 3600, hours * 3600);
        let kernel = if kernel.is_empty() {
            String::new()
        } else {
            format!("\nclock {kernel} 1")
        };
        self.refusals
            .rule(&format!("clock now {now}\nclock boot {boot}{kernel}"));
    }

    /// Starts the server again so many days from now.
    pub fn go_to(&mut self, day: u32) {
        self.lab.stop_server();
        self.set(day);
        self.lab.start_server();
    }

    /// From now on it is so many days from now.
    pub fn set(&self, day: u32) {
        self.clocks(i64::from(day * 24), 0, "");
    }
}

/// Has an agent of its own ship one line, which begins with a word of its own.
pub fn ship_a_line(lab: &mut Lab, agent: &str, line: &str) {
    lab.add_agent(agent, lab.sl, "");
    let dir = lab.dir.join(format!("logs-{agent}"));
    std::fs::create_dir_all(&dir).unwrap();
    let config = format!("[[source]]\nfile = \"{}/*.log\"\n", dir.display());
    lab.write(&format!("{agent}.toml"), config.as_bytes());
    let mut file = File::create(dir.join("app.log")).unwrap();
    file.write_all(line.as_bytes()).unwrap();
    lab.start_agent(agent);
    let word = line.split(' ').next().unwrap();
    wait_until("the line is archived", PATIENCE, || lab.count(word) == 1);
    lab.stop_agent(agent);
}

const PATIENCE: Duration = Duration::from_secs(30);

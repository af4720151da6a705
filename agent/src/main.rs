//! `scrinium-agent`.

fn main() -> std::process::ExitCode {
    scrinium_agent::main()
}

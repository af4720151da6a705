//! `scrinium-server`.

fn main() -> std::process::ExitCode {
    scrinium_server::main()
}

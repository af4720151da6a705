//! `scrinium-verify`.

fn main() -> std::process::ExitCode {
    scrinium_verify::main()
}

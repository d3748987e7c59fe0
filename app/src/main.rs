//! Tread runs Step-3 and small everyday chat models on any GPU.

fn main() -> std::process::ExitCode {
    tread::command_line()
}

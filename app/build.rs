//! Tells cargo what it cannot see: that the page in `web/dist`, which the binary contains, has other files than before.
//! And writes the code for what workers say to each other, without any tool that would have to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../web/dist");
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/afd.proto", "proto/attention.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}

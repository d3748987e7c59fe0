//! Writes a valid input for each target to corpus/TARGET/, for libFuzzer to start from.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    for target in tread_tests::fuzz::TARGETS {
        let folder = Path::new("corpus").join(target.name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("valid"), (target.seed)())?;
    }
    Ok(())
}

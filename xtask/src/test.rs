//! `cargo xtask test`: what CI runs, stage by stage.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

use crate::process::{cargo, run as start};
use crate::{machine, web};

/// What clusters need is tested too.
const CLUSTER: &str = "--features=tread/cluster";

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only this stage (may be given again)
    #[arg(long, value_enum)]
    only: Vec<Stage>,
}

/// The stages, in the order they run: cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Formatting
    Fmt,
    /// The page, which what follows contains
    Web,
    /// Lints of every target
    Clippy,
    /// Documentation
    Doc,
    /// All tests
    Test,
}

/// Prepares the machine for each stage and runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    for stage in Stage::value_variants() {
        if args.only.is_empty() || args.only.contains(stage) {
            eprintln!("== {stage:?}");
            stage.run()?;
        }
    }
    Ok(())
}

impl Stage {
    fn run(self) -> Result<()> {
        match self {
            Self::Fmt => {
                machine::rust_components()?;
                start(&mut cargo(&["fmt", "--all", "--check"])?)
            }
            Self::Clippy => {
                machine::rust_components()?;
                start(&mut cargo(&["clippy", "--workspace", "--all-targets", CLUSTER, "--", "-D", "warnings"])?)
            }
            Self::Doc => {
                start(cargo(&["doc", "--workspace", CLUSTER, "--no-deps"])?.env("RUSTDOCFLAGS", "-D warnings"))
            }
            Self::Web => web::build(),
            Self::Test => {
                let mut tests = cargo(&["test", "--workspace", CLUSTER])?;
                if let Some(driver) = machine::software_vulkan()? {
                    use_vulkan_driver(&mut tests, &driver);
                }
                tests.env("TREAD_SMOLLM2", machine::smollm2()?);
                tests.env("TREAD_PYTHON", machine::openai()?).env("TREAD_AI_SDK", machine::ai_sdk()?);
                machine::chromium()?;
                tests.env("TREAD_AXE", machine::axe()?);
                start(&mut tests)
            }
        }
    }
}

/// Makes `driver` the only one that the Vulkan loader sees, so that results do not depend on the machine. A choice
/// made outside stands.
pub(crate) fn use_vulkan_driver(command: &mut Command, driver: &Path) {
    // Loaders before 1.3.207 know the second name only.
    for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        if env::var_os(name).is_none() {
            command.env(name, driver);
        }
    }
}

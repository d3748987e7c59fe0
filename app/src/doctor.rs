//! `tread doctor`: what this machine has, and what is used of it.

use std::io::Write;

use anyhow::Result;
use tread_core::backend::Backend;
use tread_core::cpu::Cpu;
use tread_shaders::adapters;

use crate::afd::transport::missing_nixl;
use crate::{devices, hub, load, memory};

pub(crate) fn run() -> Result<()> {
    let mut out = std::io::stdout().lock();
    let found = pollster::block_on(adapters());
    writeln!(out, "tread {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "\n{}", Cpu::new().device())?;
    if let Some(available) = memory::available() {
        writeln!(out, "  memory available  {}", memory::text(available))?;
    }
    for (i, adapter) in found.iter().enumerate() {
        writeln!(out, "\nadapter {i}: {}", adapter.name)?;
        let kind = if adapter.software { "software: right, but slow" } else { &adapter.device_type };
        writeln!(out, "  {} through {}, {}", kind, adapter.backend, adapter.driver)?;
        for (name, value) in &adapter.limits {
            writeln!(out, "  {name:<26} {value}")?;
        }
        let present: Vec<_> =
            adapter.features.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        let features = if present.is_empty() { "none".to_owned() } else { present.join(", ") };
        writeln!(out, "  {:<26} {features}", "optional features")?;
    }
    if found.is_empty() {
        writeln!(
            out,
            "\nno adapter: install your GPU's Vulkan driver (Debian, Ubuntu: mesa-vulkan-drivers)"
        )?;
    }
    let choice = devices::choose(&found);
    let chosen = choice.adapter.map_or_else(|| "cpu".to_owned(), |i| format!("wgpu on adapter {i}"));
    writeln!(out, "\nback end: {chosen}, because {}", choice.reason)?;
    writeln!(out, "          --backend cpu|wgpu and --adapter change it")?;
    if let Some(folder) = load::models_folder() {
        writeln!(out, "models:   {} (TREAD_MODELS)", folder.display())?;
    }
    let nixl = missing_nixl().map_or_else(|| "there".to_owned(), |why| format!("not there; {why}"));
    writeln!(out, "NIXL:     {nixl}")?;
    writeln!(out, "hub:      {} (HF_HOME)", hub::cache_folder().display())?;
    Ok(())
}

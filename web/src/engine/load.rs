//! From a model's name to a model that answers: find, compare with what there is, download, check, put on the device.

use std::sync::Arc;

use tread_core::backend::Executable;
use tread_core::model::Model;
use web_sys::File;

use super::device::{Device, Devices, max_binding};
use super::download;
use super::failure::{Failed, failed};
use super::info::{Room, compile_options, context_length, engine_options, info};
use super::outbox::Outbox;
use super::resolve::{self, Outline};
use super::source::Parts;
use super::store::{Store, estimate};
use crate::protocol::{Compute, FailureKind, ModelInfo, ModelRef, Stage};

/// Most bytes of a model that is computed in the page's own memory, of which there are 4 GiB.
const MOST_IN_MEMORY: u64 = 3 << 29;

/// A model on a device.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) model: Arc<Model>,
    /// Its name among those that the browser keeps, if its files are there.
    pub(super) kept: Option<String>,
    pub(super) info: ModelInfo,
    pub(super) device: Device,
    pub(super) engine: tread_core::engine::Engine,
}

/// What a model is and needs.
pub(super) async fn inspect(
    model: &ModelRef,
    files: &[File],
    context: Option<usize>,
) -> Result<ModelInfo, Failed> {
    let mut room = Room { max_binding: max_binding().await, storage: None };
    if let ModelRef::Files { names } = model {
        let model = Model::new(resolve::chosen_name(names), resolve::chosen(files)?.checkpoint()?)?;
        return Ok(info(&model, context_length(&model, context)?, 0, room));
    }
    let store = Store::open().await?;
    let recipe = resolve::recipe(&store, model).await?;
    let outline = resolve::outline(&store, &recipe).await?;
    room.storage = storage_left().await;
    let context = context_length(&outline.model, context)?;
    Ok(info(&outline.model, context, missing(&outline), room))
}

async fn storage_left() -> Option<u64> {
    let (used, quota) = estimate().await;
    Some(quota?.saturating_sub(used.unwrap_or(0)))
}

fn missing(outline: &Outline) -> u64 {
    outline.totals.iter().sum::<u64>().saturating_sub(outline.kept)
}

/// Loads a model.
pub(super) async fn load(
    devices: &Devices,
    outbox: &Outbox,
    model: &ModelRef,
    files: &[File],
    context: Option<usize>,
    compute: Compute,
) -> Result<Ready, Failed> {
    let device = Opened(Some(devices.open(compute).await));
    let (name, kept, parts) = match model {
        ModelRef::Files { names } => (resolve::chosen_name(names), None, resolve::chosen(files)?),
        model => {
            let (name, parts) = download_all(device.get()?, outbox, model, context).await?;
            (name.clone(), Some(name), parts)
        }
    };
    let parts = if device.get()?.is_cpu() { parts.in_memory(MOST_IN_MEMORY)? } else { parts };
    let model = Arc::new(Model::new(name, parts.checkpoint()?)?);
    let context = context_length(&model, context)?;
    let mut info = info(&model, context, 0, Room { max_binding: max_binding().await, storage: None });
    info.device = Some(device.get()?.name.clone());
    let executable = upload(device.get()?, outbox, &model, context).await?;
    let engine = tread_core::engine::Engine::new(model.clone(), executable, engine_options(context));
    Ok(Ready { model, kept, info, device: device.keep()?, engine })
}

/// A device that is given back when loading ends before its end.
struct Opened(Option<Device>);

impl Opened {
    fn get(&self) -> Result<&Device, Failed> {
        self.0.as_ref().ok_or_else(|| failed(FailureKind::Device, "the device is gone"))
    }

    fn keep(mut self) -> Result<Device, Failed> {
        self.0.take().ok_or_else(|| failed(FailureKind::Device, "the device is gone"))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(device) = &self.0 {
            device.destroy();
        }
    }
}

/// Downloads what is missing of a model, and checks what is there.
async fn download_all(
    device: &Device,
    outbox: &Outbox,
    model: &ModelRef,
    context: Option<usize>,
) -> Result<(String, Parts), Failed> {
    let store = Store::open().await?;
    let recipe = resolve::recipe(&store, model).await?;
    let outline = resolve::outline(&store, &recipe).await?;
    let context = context_length(&outline.model, context)?;
    let room = Room { max_binding: max_binding().await, storage: storage_left().await };
    if let Some(obstacle) = info(&outline.model, context, missing(&outline), room).obstacle {
        return Err(failed(FailureKind::Memory, obstacle));
    }
    let folder = store.folder(&recipe.name).await?;
    folder.describe(&recipe).await?;
    let Outline { model: sketch, totals, .. } = outline;
    // Kernels compile while the weights come.
    device.backend.prepare(&sketch.graph, &sketch.weights, &compile_options(context))?;
    let total = totals.iter().sum();
    let mut before = 0;
    for (spec, bytes) in recipe.files.iter().zip(&totals) {
        let mut report = |stage: Stage, done: u64| outbox.progress(stage, before + done, total);
        download::fetch(&folder, spec, &mut report).await?;
        before += bytes;
    }
    Ok((recipe.name.clone(), resolve::kept(&folder, &recipe).await?))
}

/// Puts a model on a device.
pub(super) async fn upload(
    device: &Device,
    outbox: &Outbox,
    model: &Model,
    context: usize,
) -> Result<Box<dyn Executable>, Failed> {
    let mut progress = |done, total| outbox.progress(Stage::Upload, done, total);
    let loaded = model.load(&*device.backend, compile_options(context), &mut progress).await;
    loaded.map_err(|error| {
        let mut failure = Failed::from(error);
        if failure.kind == FailureKind::Memory && !failure.message.contains("smaller model") {
            failure.message.push_str("; or use a smaller model");
        }
        failure
    })
}

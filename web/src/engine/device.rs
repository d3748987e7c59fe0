//! The device that computes: this browser's GPU where it computes correctly, else the CPU.

use std::cell::RefCell;
use std::rc::Rc;

use js_sys::Reflect;
use tread_core::backend::Backend;
use tread_core::cpu::Cpu;
use tread_shaders::{AdapterReport, Selector, Wgpu, adapters};

use super::failure::{Failed, failed};
use super::js::scope;
use super::self_test;
use super::store::Store;
use crate::protocol::{Adapter, Capabilities, Compute, FailureKind, SelfTest};

/// The limit that decides how long a context can be.
const MAX_BINDING: &str = "max binding bytes";

/// An open device.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) backend: Rc<dyn Backend>,
    gpu: Option<Rc<Wgpu>>,
    /// For people.
    pub(super) name: String,
}

impl Device {
    /// Whether it is the CPU, which wants the weights in memory.
    pub(super) fn is_cpu(&self) -> bool {
        self.gpu.is_none()
    }

    /// # Errors
    /// Once the device has failed.
    pub(super) fn check(&self) -> tread_core::Result<()> {
        self.gpu.as_ref().map_or(Ok(()), |gpu| gpu.check())
    }

    /// Gives back everything it holds: JavaScript's garbage would keep it for a while.
    pub(super) fn destroy(&self) {
        if let Some(gpu) = &self.gpu {
            gpu.destroy();
        }
    }
}

/// Opens devices; tests the first.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices {
    tested: Rc<RefCell<Option<SelfTest>>>,
}

impl Devices {
    /// The GPU if it is wanted, there is one, and it computes correctly; else the CPU.
    pub(super) async fn open(&self, compute: Compute) -> Device {
        let software = "what this browser has for a GPU is software, and slower";
        let name = match compute {
            Compute::Cpu => "CPU".to_owned(),
            Compute::Auto if adapter().await.is_ok_and(|adapter| adapter.software) => {
                format!("CPU: {software}")
            }
            Compute::Auto | Compute::Gpu => match self.open_gpu().await {
                Ok(device) => return device,
                Err(reason) => format!("CPU: {reason}"),
            },
        };
        Device { backend: Rc::new(Cpu::new()), gpu: None, name }
    }

    /// Another one in place of one that was lost.
    pub(super) async fn reopen(&self, lost: &Device) -> Result<Device, Failed> {
        if lost.is_cpu() {
            return Ok(lost.clone());
        }
        self.open_gpu().await.map_err(|reason| failed(FailureKind::Device, reason))
    }

    /// The GPU, or why not.
    async fn open_gpu(&self) -> Result<Device, String> {
        let gpu = open_gpu().await?;
        let test = self.test(&gpu).await;
        if !test.passed {
            gpu.destroy();
            return Err(format!("the GPU failed its self-test: {}", test.message.unwrap_or_default()));
        }
        let name = gpu.device();
        let gpu = Rc::new(gpu);
        Ok(Device { backend: gpu.clone(), gpu: Some(gpu), name })
    }

    async fn test(&self, gpu: &Wgpu) -> SelfTest {
        let known = self.tested.borrow().clone();
        if let Some(test) = known {
            return test;
        }
        let test = self_test::run(gpu).await;
        // One that could not be made, as when memory ran out, is made again.
        if test.error < f32::MAX {
            *self.tested.borrow_mut() = Some(test.clone());
        }
        test
    }

    /// What browser and GPU can do.
    pub(super) async fn probe(&self) -> Capabilities {
        let storage = Store::open().await.is_ok();
        let (adapter, reason) = match adapter().await {
            Ok(report) => (Some(report), None),
            Err(reason) => (None, Some(reason)),
        };
        let mut self_test = None;
        if adapter.is_some() {
            self_test = Some(match open_gpu().await {
                Ok(gpu) => {
                    let test = self.test(&gpu).await;
                    gpu.destroy();
                    test
                }
                Err(reason) => SelfTest { passed: false, error: f32::MAX, message: Some(reason) },
            });
        }
        Capabilities { adapter: adapter.map(shown), reason, self_test, storage }
    }
}

async fn open_gpu() -> Result<Wgpu, String> {
    adapter().await?;
    Wgpu::open(Selector::Best).await.map_err(|error| error.to_string())
}

/// The adapter, or why there is none.
async fn adapter() -> Result<AdapterReport, String> {
    let scope = scope();
    if !scope.is_secure_context() {
        let message =
            "browsers give the GPU only to pages that come by https or from this machine itself (localhost)";
        return Err(message.to_owned());
    }
    if !Reflect::get(&scope.navigator(), &"gpu".into()).is_ok_and(|gpu| gpu.is_object()) {
        let message = "this browser has no WebGPU; current versions of Chrome, Edge, Safari and Firefox do";
        return Err(message.to_owned());
    }
    let found = adapters().await.into_iter().next();
    found.ok_or_else(|| {
        "the browser has WebGPU but gives no adapter: its GPU or driver may be blocked".to_owned()
    })
}

/// Bytes of the largest buffer that a kernel can be given.
pub(super) async fn max_binding() -> Option<u64> {
    let adapter = adapter().await.ok()?;
    adapter.limits.iter().find(|(name, _)| *name == MAX_BINDING).map(|(_, bytes)| *bytes)
}

fn shown(report: AdapterReport) -> Adapter {
    Adapter {
        name: report.name,
        software: report.software,
        limits: report.limits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        features: report.features.into_iter().map(|(name, there)| (name.to_owned(), there)).collect(),
    }
}

//! What a browser tells of its adapter and wgpu does not pass on.

use js_sys::{Function, Object, Promise, Reflect};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

/// Words by which adapters that run on the CPU are known, also where a browser does not call them fallbacks.
const SOFTWARE: [&str; 5] = ["swiftshader", "llvmpipe", "lavapipe", "warp", "basic render"];

/// `GPUAdapterInfo`, and of the features the one that wgpu does not know in browsers.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    words: Vec<String>,
    pub(crate) subgroups: bool,
}

impl Identity {
    pub(crate) fn name(&self) -> String {
        if self.words.is_empty() { "unnamed adapter".to_owned() } else { self.words.join(" ") }
    }

    pub(crate) fn is_software(&self) -> bool {
        let name = self.name().to_lowercase();
        SOFTWARE.iter().any(|word| name.contains(word))
    }
}

/// What the adapter calls itself; nothing where there is none.
pub(crate) async fn identity() -> Identity {
    ask().await.unwrap_or_default()
}

async fn ask() -> Result<Identity, JsValue> {
    let gpu = get(&get(&js_sys::global(), "navigator")?, "gpu")?;
    let options = Object::new();
    Reflect::set(&options, &"powerPreference".into(), &"high-performance".into())?;
    let request: Function = get(&gpu, "requestAdapter")?.dyn_into()?;
    let promise: Promise = request.call1(&gpu, &options)?.dyn_into()?;
    let adapter = JsFuture::from(promise).await?;
    let info = get(&adapter, "info")?;
    let words = ["vendor", "architecture", "description"].map(|key| get(&info, key).ok()?.as_string());
    let words = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    let features = get(&adapter, "features")?;
    let has: Function = get(&features, "has")?.dyn_into()?;
    let subgroups = has.call1(&features, &"subgroups".into())?.is_truthy();
    Ok(Identity { words, subgroups })
}

fn get(object: &JsValue, key: &str) -> Result<JsValue, JsValue> {
    Reflect::get(object, &key.into())
}

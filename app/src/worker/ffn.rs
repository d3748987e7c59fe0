//! `tread worker ffn`.

use std::sync::Arc;

use anyhow::Result;
use tread_core::afd::Layout;

use super::input::Input;
#[cfg(feature = "cluster")]
use super::register;
use crate::afd::host::{Host, Setup};
use crate::afd::transport::serve;
use crate::afd::{shape, terms};
use crate::cli::FfnWorkerArgs;
use crate::{devices, load, progress};

/// Serves a shard of a model's FFNs until it is told to stop and all who use it have gone elsewhere.
pub(crate) fn ffn(args: &FfnWorkerArgs) -> Result<()> {
    // Before the weights are read, which takes long.
    let security = super::security(&args.worker)?;
    args.transport.nixl().map_err(anyhow::Error::msg)?;
    let input = Input::read(args.worker.while_stdin);
    #[cfg(feature = "cluster")]
    let etcd = register::etcd(&args.etcd, &args.worker)?;
    let host = host(args)?;
    let name = args.model.as_deref().unwrap_or(crate::embedded::NAME);
    let runtime = super::runtime()?;
    let result = runtime.block_on(async {
        let served = serve(host.clone(), args.worker.listen, &security, args.transport).await?;
        let welcome = host.welcome();
        let name =
            format!("{name}, shard {} of {} on {}", welcome.shard, welcome.terms.shards, welcome.device);
        #[cfg(feature = "cluster")]
        let registered = etcd.map(|etcd| register::ffn(etcd, &args.worker, host.clone(), served.address()));
        let leave = async {
            #[cfg(feature = "cluster")]
            if let Some(registered) = registered {
                registered.withdraw().await;
            }
        };
        super::run(&args.worker, &served, &name, &security, input.ended(), leave).await
    });
    runtime.shutdown_background();
    result
}

fn host(args: &FfnWorkerArgs) -> Result<Host> {
    let model = load::model(args.model.as_deref())?;
    let (sharding, dtype) = (args.sharding.into(), args.afd_dtype.into());
    let layout = Layout::new(&shape(&model.graph, sharding, dtype), sharding, args.shard.of)?;
    let (device, backend, adapter) = (args.device.clone(), args.backend, args.adapter.clone());
    let bar = progress::bytes(&format!("loading {}", model.name), 0);
    let shown = bar.clone();
    let setup = Setup {
        terms: terms(&model, sharding, args.shard.of, dtype)?,
        layout: Arc::new(layout),
        shard: args.shard.shard,
        weights: model.weights,
        max_rows: args.max_rows as usize,
        slots: args.slots as usize,
        open: Box::new(move || match device {
            Some(name) => devices::open_named(&name),
            None => devices::open(backend, adapter.as_ref()),
        }),
        progress: Box::new(move |done, total| {
            shown.set_length(total);
            shown.set_position(done);
        }),
    };
    let host = Host::start(setup);
    bar.finish_and_clear();
    host
}

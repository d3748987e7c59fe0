//! `tread worker attention`.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::input::Input;
#[cfg(feature = "cluster")]
use super::register;
use crate::afd::Members;
use crate::attention::Limits;
use crate::attention::desk::Desk;
use crate::attention::grpc::serve;
use crate::attention::hello::Terms;
use crate::attention::thread::Device;
use crate::cli::{AttentionWorkerArgs, EngineArgs};
use crate::{devices, load};

/// Is an engine for servers until it is told to stop and has answered what it has.
pub(crate) fn attention(args: &AttentionWorkerArgs) -> Result<()> {
    // Before the weights are read, which takes long.
    let security = super::security(&args.worker)?;
    let mut engine = args.engine.clone();
    #[cfg(feature = "cluster")]
    let etcd = register::etcd(&engine.device.afd.etcd, &args.worker)?;
    let lists = engine.device.afd.ffn.as_ref().is_some_and(Members::is_input);
    let input = Input::read(args.worker.while_stdin || lists);
    if lists {
        engine.device.afd.ffn = Some(Members::Started(input.places()));
    }
    let orphaned = async {
        if !args.worker.while_stdin {
            std::future::pending::<()>().await;
        }
        input.ended().await;
    };
    let model = args.model.clone();
    let name = args.model.as_deref().unwrap_or(crate::embedded::NAME);
    let runtime = super::runtime()?;
    let result = runtime.block_on(async {
        tokio::pin!(orphaned);
        let loading = tokio::task::spawn_blocking(move || desk(model.as_deref(), &engine));
        let desk = tokio::select! {
            desk = loading => desk.context("the worker panicked while it loaded")??,
            // Its loading is not to be waited for.
            () = &mut orphaned => return Ok(()),
        };
        let served = serve(desk.clone(), args.worker.listen, &security).await?;
        let name = format!("{name}, attention on {}", desk.device());
        #[cfg(feature = "cluster")]
        let registered = etcd.map(|etcd| register::attention(etcd, &args.worker, desk, served.address()));
        let leave = async {
            #[cfg(feature = "cluster")]
            if let Some(registered) = registered {
                registered.withdraw().await;
            }
        };
        super::run(&args.worker, &served, &name, &security, orphaned, leave).await
    });
    runtime.shutdown_background();
    result
}

fn desk(model: Option<&str>, args: &EngineArgs) -> Result<Desk> {
    let model = Arc::new(load::model(model)?);
    let limits = Limits::from_args(&model, args)?;
    let afd = &args.device.afd;
    let terms = Terms::new(&model, &limits, (afd.sharding.into(), afd.afd_dtype.into()))?;
    let (opened, device) = (Arc::clone(&model), args.device.clone());
    let open = Box::new(move || devices::open_for(&opened, &device));
    Desk::start(Device { open, model, limits }, terms)
}

//! The plan as tables and as a plot.

use anyhow::Result;

use super::deploy::Links;
use super::{Deployment, Plan, Report};
use crate::chart::{self, Titles};
use crate::table::{Table, scientific};

/// Deployments that are printed; JSON has all.
const SHOWN: usize = 4;

impl Report {
    pub(super) fn text(&self) -> String {
        let mut tables = vec![self.hardware_table(), self.work_table(), self.cost_table()];
        tables.push(self.sparsity_table());
        tables.push(self.streaming_table());
        let mut text: Vec<String> = tables.iter().map(Table::to_string).collect();
        text.push(self.deployments());
        text.push(self.links().to_string());
        text.join("\n")
    }

    fn hardware_table(&self) -> Table {
        let headings = ["", "$/h", "FLOP/s", "memory B/s", "network B/s", "FLOP/B", "$/FLOP", "$/B"];
        let mut table = Table::new("Hardware, a GPU (network: a server)", headings);
        for hardware in &self.hardware {
            table.row([
                hardware.name.clone(),
                format!("{:.2}", hardware.price_per_hour),
                scientific(hardware.flops()),
                scientific(hardware.memory_bandwidth),
                scientific(hardware.network_bandwidth),
                format!("{:.0}", hardware.roofline()),
                scientific(hardware.price_per_flop()),
                scientific(hardware.price_per_byte()),
            ]);
        }
        table
    }

    fn work_table(&self) -> Table {
        let title = format!("Work of one token at a context of {}", self.goal.context);
        let headings = ["", "attention", "KV B", "attention FLOP", "linear FLOP", "FFN FLOP", "FLOP/KV B"];
        let mut table = Table::new(title, headings);
        for plan in &self.plans {
            table.row([
                plan.model.clone(),
                plan.attention.clone(),
                scientific(plan.work.kv_bytes),
                scientific(plan.work.attention_flops),
                scientific(plan.work.linear_flops),
                scientific(plan.work.ffn_flops),
                format!("{:.0}", plan.intensity),
            ]);
        }
        table
    }

    fn cost_table(&self) -> Table {
        let names = self.hardware.iter().map(|h| h.name.as_str()).collect::<Vec<_>>().join("/");
        let title = format!("US dollars for a million tokens at the peaks of {names}");
        let mut table = Table::new(title, ["", "attention", "FFN", "cheapest", "on"]);
        for plan in &self.plans {
            let column = |cost: fn(&super::OnHardware) -> f64| {
                plan.on.iter().map(|on| format!("{:.3}", cost(on))).collect::<Vec<_>>().join("/")
            };
            let cheapest = &plan.cheapest;
            table.row([
                plan.model.clone(),
                column(|on| on.dollars_per_million.attention),
                column(|on| on.dollars_per_million.ffn),
                format!("{:.3}", cheapest.dollars_per_million.attention + cheapest.dollars_per_million.ffn),
                format!("{} + {}", cheapest.attention, cheapest.ffn),
            ]);
        }
        table
    }

    fn sparsity_table(&self) -> Table {
        let names = self.hardware.iter().map(|h| h.name.as_str()).collect::<Vec<_>>().join("/");
        let title = "Least MoE sparsity for which the network lasts";
        let mut table = Table::new(title, ["", names.as_str(), "the model's"]);
        for plan in &self.plans {
            let least = plan.on.iter().map(|on| format!("{:.3}", on.minimum_sparsity)).collect::<Vec<_>>();
            let own = plan.sparsity.map_or_else(|| "dense".to_owned(), |s| format!("{s:.3}"));
            table.row([plan.model.clone(), least.join("/"), own]);
        }
        table
    }

    fn streaming_table(&self) -> Table {
        let title = "What the memory of a GPU streams in one stage of a layer";
        let headings = [
            "",
            "MB",
            "attention weights MB",
            "KV tokens",
            "batch",
            "FFN GB a GPU",
            "FFN servers",
            "FFN GPUs",
        ];
        let mut table = Table::new(title, headings);
        for plan in &self.plans {
            for on in &plan.on {
                let streaming = &on.streaming;
                table.row([
                    format!("{} on {}", plan.model, on.hardware),
                    format!("{:.0}", streaming.stage_bytes / 1e6),
                    format!("{:.0}", streaming.attention_bytes / 1e6),
                    format!("{:.0}K", streaming.kv_tokens / 1e3),
                    streaming.batch.to_string(),
                    format!("{:.1}", streaming.ffn_bytes / 1e9),
                    streaming.ffn_servers.to_string(),
                    streaming.ffn_gpus.to_string(),
                ]);
            }
        }
        table
    }

    fn shown(&self) -> impl Iterator<Item = (&Plan, &Deployment)> {
        self.plans.iter().flat_map(|plan| plan.deployments.iter().take(SHOWN).map(move |d| (plan, d)))
    }

    fn deployments(&self) -> String {
        let e = &self.efficiency;
        let title = format!(
            "Deployments for {:.0} ms a token, {} micro-batches, a layer's stages in us; reached of the peaks: compute \
             {}, memory {}, network {}, pipeline {}, overhead {} us a stage",
            self.goal.tpot_s * 1e3,
            self.goal.micro_batches,
            e.compute,
            e.memory,
            e.network,
            e.pipeline,
            e.overhead_us
        );
        let headings = [
            "",
            "attention + FFN",
            "servers",
            "GPUs",
            "batch",
            "a GPU",
            "A",
            "A->F",
            "F",
            "F->A",
            "TPOT ms",
            "tok/GPU/s",
            "$/M",
        ];
        let mut table = Table::new(title, headings);
        for (plan, d) in self.shown() {
            let us = |time: f64| format!("{time:.0}");
            table.row([
                plan.model.clone(),
                format!("{} + {}", d.attention_hardware, d.ffn_hardware),
                d.instances.to_string(),
                d.gpus.to_string(),
                format!("{}x{}", d.micro_batches, d.micro_batch),
                d.batch_per_gpu.to_string(),
                us(d.stages_us.attention),
                us(d.stages_us.a2f),
                us(d.stages_us.ffn),
                us(d.stages_us.f2a),
                format!("{:.1}", d.tpot_ms),
                format!("{:.0}", d.tokens_per_gpu_s),
                format!("{:.3}", d.dollars_per_million),
            ]);
        }
        let mut text = table.to_string();
        for plan in self.plans.iter().filter(|plan| plan.deployments.is_empty()) {
            text +=
                &format!("  {}: none keeps the goal on this hardware; allow more with --tpot\n", plan.model);
        }
        text
    }

    fn links(&self) -> Table {
        let title =
            "Network: KB of a micro-batch and layer on the link of a GPU, and Gbit/s for both in one stage";
        let headings = ["", "A: A->F", "F->A", "needs", "has", "F: A->F", "F->A", "needs", "has"];
        let mut table = Table::new(title, headings);
        for (plan, d) in self.shown() {
            let kb = |bytes: f64| format!("{:.0}", bytes / 1e3);
            let rate = |gbit: f64| format!("{gbit:.0}");
            let Links { attention, ffn } = d.link;
            table.row([
                format!("{} {} on {} + {}", plan.model, d.instances, d.attention_hardware, d.ffn_hardware),
                kb(attention.a2f_bytes),
                kb(attention.f2a_bytes),
                rate(attention.gbit_per_s),
                rate(attention.has_gbit_per_s),
                kb(ffn.a2f_bytes),
                kb(ffn.f2a_bytes),
                rate(ffn.gbit_per_s),
                rate(ffn.has_gbit_per_s),
            ]);
        }
        table
    }

    /// Costs of attention and FFN, a bar for each model and hardware.
    pub(super) fn svg(&self) -> Result<String> {
        let all = || self.plans.iter().flat_map(|plan| plan.on.iter().map(move |on| (plan, on)));
        let labels: Vec<String> = all().map(|(plan, on)| format!("{} {}", plan.model, on.hardware)).collect();
        let attention = all().map(|(_, on)| on.dollars_per_million.attention).collect();
        let ffn = all().map(|(_, on)| on.dollars_per_million.ffn).collect();
        let title = format!("Cost of a million tokens at a context of {}", self.goal.context);
        let titles = Titles { plot: &title, x: "", y: "US dollars" };
        chart::bars(titles, &labels, &[("attention", attention), ("FFN", ffn)])
    }
}

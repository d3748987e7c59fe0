//! How long each dispatch of a step takes, by the device's own clock.

use tread_core::monitor::OpTime;
use tread_core::{Error, Result};

use crate::buffers::{map, staging};
use crate::plan::Label;

/// Dispatches in a query set: each has a timestamp before and one behind it.
const PER_SET: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

/// Timestamps of one step.
#[derive(Debug)]
pub(crate) struct Profiler {
    labels: Vec<Label>,
    sets: Vec<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    /// Nanoseconds of a tick.
    period: f64,
}

impl Profiler {
    /// For a step of dispatches with these labels; none where the device has no clock or there is nothing to measure.
    pub(crate) fn new(device: &wgpu::Device, queue: &wgpu::Queue, labels: Vec<Label>) -> Option<Self> {
        if labels.is_empty() || !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let sets = labels.chunks(PER_SET).map(|labels| {
            device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: labels.len() as u32 * 2,
            })
        });
        let bytes = labels.len() as u64 * 16;
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let period = f64::from(queue.get_timestamp_period());
        Some(Self { sets: sets.collect(), resolved, staging: staging(device, bytes), period, labels })
    }

    /// The pass of dispatch `at`.
    pub(crate) fn pass(&self, at: usize) -> wgpu::ComputePassDescriptor<'_> {
        let first = (at % PER_SET * 2) as u32;
        wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &self.sets[at / PER_SET],
                beginning_of_pass_write_index: Some(first),
                end_of_pass_write_index: Some(first + 1),
            }),
        }
    }

    /// Records what brings the timestamps to where [`Profiler::read`] finds them.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        for (number, (set, labels)) in self.sets.iter().zip(self.labels.chunks(PER_SET)).enumerate() {
            let offset = (number * PER_SET * 16) as u64;
            encoder.resolve_query_set(set, 0..labels.len() as u32 * 2, &self.resolved, offset);
        }
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, self.resolved.size());
    }

    /// What was measured, once the step is done. Browsers round their clocks, so that short ops may take no time.
    pub(crate) async fn read(self, device: &wgpu::Device) -> Result<Vec<OpTime>> {
        map(device, &self.staging, self.resolved.size()).await?;
        let view = self.staging.get_mapped_range(..self.resolved.size());
        let view = view.map_err(|e| Error::Device(format!("reading timestamps: {e}")))?;
        let ticks: &[[u64; 2]] = bytemuck::cast_slice(&view);
        let first = ticks.iter().map(|t| t[0]).min().unwrap_or(0);
        let us = |ticks: u64| ticks as f64 * self.period / 1e3;
        let op = |(label, [begin, end]): (&Label, &[u64; 2])| OpTime {
            name: label.name.to_owned(),
            layer: label.layer,
            side: label.side,
            micro_batch: 0,
            start_us: us(begin - first),
            us: us(end.saturating_sub(*begin)),
        };
        Ok(self.labels.iter().zip(ticks).map(op).collect())
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        self.sets.iter().for_each(wgpu::QuerySet::destroy);
        [&self.resolved, &self.staging].into_iter().for_each(wgpu::Buffer::destroy);
    }
}

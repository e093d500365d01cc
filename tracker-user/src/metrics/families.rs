//! Collects samples, and writes them in Prometheus' text format.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Encoder as _, TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric as Sample, MetricFamily},
};

use super::registry::{Kind, Metric};

/// Samples, by the name of their metric.
#[derive(Debug, Default)]
pub(super) struct Families(BTreeMap<&'static str, (&'static Metric, Vec<Sample>)>);

impl Families {
    /// Adds a sample. The labels' values are in the order of the metric's labels; no two samples
    /// may have the same.
    pub(super) fn add(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let mut pairs: Vec<_> = metric.labels.iter().zip(labels).map(|(n, v)| pair(n, v)).collect();
        pairs.sort_by(|a, b| a.name().cmp(b.name()));
        let mut sample = Sample::from_label(pairs);
        match metric.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                sample.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                sample.set_gauge(gauge);
            }
        }
        self.of(metric).push(sample);
    }

    /// Adds a sample without labels.
    pub(super) fn one(&mut self, metric: &'static Metric, value: f64) {
        self.add(metric, &[], value);
    }

    /// Adds all samples of another collection.
    pub(super) fn append(&mut self, others: Self) {
        for (metric, mut samples) in others.0.into_values() {
            self.of(metric).append(&mut samples);
        }
    }

    fn of(&mut self, metric: &'static Metric) -> &mut Vec<Sample> {
        &mut self.0.entry(metric.name).or_insert_with(|| (metric, Vec::new())).1
    }

    /// Returns how many samples there are.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(|(_, samples)| samples.len()).sum()
    }

    /// Writes these samples, and other families, as text.
    pub(super) fn encode(self, others: Vec<MetricFamily>) -> Result<Vec<u8>, prometheus::Error> {
        let mut families: Vec<_> = self.0.into_values().map(|(m, samples)| family(m, samples)).collect();
        families.extend(others);
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// Converts a time into seconds since 1970, as Prometheus uses it.
pub(super) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn family(metric: &Metric, samples: Vec<Sample>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(metric.name.to_owned());
    family.set_help(metric.help.to_owned());
    family.set_field_type(metric.kind.proto());
    family.set_metric(samples);
    family
}

//! How long a plan takes: for fleets of 1,000 and 10,000 agents, without drift and with everything
//! missing.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use vm_agent_plan::plan;

#[path = "../tests/world/mod.rs"]
mod world;

fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    for agents in [1_000, 10_000] {
        let missing = world::fleet_of(agents);
        let settled = world::settled(missing.clone());
        assert_eq!(plan(&missing).steps.len(), agents);
        assert!(plan(&settled).is_empty());
        group.bench_with_input(BenchmarkId::new("everything_missing", agents), &missing, |b, inputs| {
            b.iter(|| plan(inputs));
        });
        group.bench_with_input(BenchmarkId::new("no_drift", agents), &settled, |b, inputs| b.iter(|| plan(inputs)));
    }
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);

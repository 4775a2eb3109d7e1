use super::*;
use proptest::prelude::*;

/// A machine with a guest of 256 MiB in emulation.
const COLD: Demand = Demand { guest_mb: 256, accelerator: Some(Accelerator::Tcg), restored: false };
const RESTORED: Demand = Demand { restored: true, ..COLD };

fn host(total_mb: u64, available_mb: u64) -> Memory {
    Memory { host_total: total_mb * MIB, host_available: available_mb * MIB, group: None, configured: None }
}

fn live(demand: Demand, used_mb: u64) -> Live {
    Live { expected: demand.expected_bytes(), used: used_mb * MIB }
}

/// How many machines start one after the other, none of which has used anything yet.
fn admitted(demand: Demand, memory: &Memory) -> usize {
    let mut machines = Vec::new();
    while decide(demand.expected_bytes(), memory, &machines).is_ok() {
        machines.push(live(demand, 0));
    }
    machines.len()
}

#[test]
fn a_clone_is_expected_to_need_less_than_a_cold_machine() {
    assert_eq!(COLD.expected_bytes(), (256 + 64 + 40) * MIB);
    assert_eq!(RESTORED.expected_bytes(), (64 + 64 + 40) * MIB);
    let under_kvm = Demand { accelerator: Some(Accelerator::Kvm), ..RESTORED };
    assert_eq!(under_kvm.expected_bytes(), (64 + 40) * MIB);
    assert_eq!(Demand { guest_mb: 1, ..under_kvm }.expected_bytes(), 64 * MIB);
}

#[test]
fn of_three_hundred_asked_for_as_many_start_as_there_is_memory_for() {
    // 24 GiB as measured when idle; the margin is 3 %.
    let memory = host(24105, 23619);
    assert_eq!(admitted(RESTORED, &memory), (23619 - 730) / 168);
    assert_eq!(admitted(COLD, &memory), (23619 - 730) / 360);
}

#[test]
fn what_live_machines_have_not_used_yet_is_kept_for_them() {
    let memory = host(2048, 1000);
    // 1000 - 256 of margin - 2 × (360 - 100).
    let refusal = decide(COLD.expected_bytes(), &memory, &[live(COLD, 100), live(COLD, 100)]).unwrap_err();
    assert_eq!((refusal.left, refusal.growth), (224 * MIB, 520 * MIB));
    // Who used more than was expected takes it from what is available, and from nothing else.
    let grown = [live(COLD, 500), live(COLD, 360)];
    assert_eq!(decide(COLD.expected_bytes(), &memory, &grown), Ok(()));
}

#[test]
fn the_tightest_bound_is_named() {
    let group = Headroom { dir: "/sys/fs/cgroup/x".into(), limit: 3300 * MIB, left: 400 * MIB };
    let mut memory = Memory { group: Some(group), ..host(24105, 23619) };
    let refusal = decide(COLD.expected_bytes(), &memory, &[]).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "not enough memory for one more machine: it needs 360 MiB, and of the 3300 MiB of control group \
         /sys/fs/cgroup/x 300 MiB are left"
    );
    assert_eq!(refusal.remedy(), "give the machine less (--memory), or raise the limit of the control group");

    memory.configured = Some(500 * MIB);
    let refusal = decide(COLD.expected_bytes(), &memory, &[live(RESTORED, 200)]).unwrap_err();
    assert_eq!(refusal.bound, Bound::Group("/sys/fs/cgroup/x".into()));
    memory.group = None;
    let refusal = decide(COLD.expected_bytes(), &memory, &[live(RESTORED, 200)]).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "not enough memory for one more machine: it needs 360 MiB, and of the configured 500 MiB 300 MiB are \
         left (1 machine runs and may grow by 0 MiB)"
    );
    assert!(refusal.remedy().starts_with("stop machines (casemate stop NAME), "));
}

#[test]
fn a_host_that_tells_nothing_about_its_memory_refuses_nobody() {
    let memory = Memory { host_total: u64::MAX, host_available: u64::MAX, group: None, configured: None };
    assert_eq!(decide(COLD.expected_bytes(), &memory, &[live(COLD, 0)]), Ok(()));
}

proptest! {
    #[test]
    fn what_is_admitted_fits_with_the_margin(
        total_mb in 300_u64..100_000,
        used_by_others_mb in 0_u64..5_000,
        machines in proptest::collection::vec((16_u32..4096, any::<bool>(), 0_u64..5_000), 0..120),
        guest_mb in 16_u32..8192,
        restored in any::<bool>(),
    ) {
        let live: Vec<Live> = machines
            .iter()
            .map(|&(guest_mb, restored, used_mb)| live(Demand { guest_mb, restored, ..COLD }, used_mb))
            .collect();
        let used = sum(live.iter().map(|machine| machine.used)) + used_by_others_mb * MIB;
        let mut memory = host(total_mb, 0);
        memory.host_available = (total_mb * MIB).saturating_sub(used);
        let demand = Demand { guest_mb, restored, ..COLD };
        let in_the_end = used_by_others_mb * MIB
            + sum(live.iter().map(|machine| machine.expected.max(machine.used)))
            + demand.expected_bytes();
        let fits = in_the_end + figures::host_margin(total_mb * MIB) <= total_mb * MIB;
        prop_assert_eq!(decide(demand.expected_bytes(), &memory, &live).is_ok(), fits);
    }

    #[test]
    fn a_configured_limit_is_never_promised_twice(limit_mb in 0_u64..50_000, guest_mb in 16_u32..4096) {
        let demand = Demand { guest_mb, ..COLD };
        let memory = Memory { configured: Some(limit_mb * MIB), ..host(1 << 30, 1 << 30) };
        let count = admitted(demand, &memory) as u64;
        let each = demand.expected_bytes() / MIB;
        prop_assert!(count * each <= limit_mb && limit_mb < (count + 1) * each);
    }
}

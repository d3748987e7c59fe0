use proptest::prelude::*;

use super::{Allowed, Dry, History, Sampler, SamplingParams};
use crate::grammar::TokenMask;

/// Nothing filtered, plain softmax.
fn plain() -> SamplingParams {
    SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(1), ..Default::default() }
}

fn greedy() -> SamplingParams {
    SamplingParams::greedy()
}

/// A choice where nothing is forbidden; the first `prompt` tokens of `history` are the prompt's.
fn choose(sampler: &mut Sampler, logits: &[f32], history: &[u32], prompt: usize) -> u32 {
    sampler.sample(logits, History { tokens: history, prompt }, Allowed::default()).unwrap()
}

/// How often each token is drawn.
fn draws(params: SamplingParams, logits: &[f32], count: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(params).unwrap();
    let mut found = vec![0; logits.len()];
    for _ in 0..count {
        found[choose(&mut sampler, logits, &[], 0) as usize] += 1;
    }
    found
}

fn support(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
    let found = draws(params, logits, 2000);
    (0..found.len()).filter(|&i| found[i] > 0).collect()
}

/// Probabilities 0.5, 0.25, 0.15, 0.1, not in order.
fn known() -> [f32; 4] {
    [0.15f32, 0.5, 0.1, 0.25].map(f32::ln)
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let mut greedy = Sampler::new(greedy()).unwrap();
    assert_eq!(choose(&mut greedy, &[0.0, 3.0, -1.0, 3.0], &[], 0), 1);
    assert_eq!(choose(&mut greedy, &[f32::NEG_INFINITY, -5.0], &[], 0), 1);
}

#[test]
fn each_filter_keeps_what_it_says() {
    let logits = known();
    assert_eq!(support(plain(), &logits), [0, 1, 2, 3]);
    assert_eq!(support(SamplingParams { top_k: 2, ..plain() }, &logits), [1, 3]);
    assert_eq!(support(SamplingParams { top_k: 9, ..plain() }, &logits), [0, 1, 2, 3]);
    assert_eq!(support(SamplingParams { top_p: 0.7, ..plain() }, &logits), [1, 3]);
    assert_eq!(support(SamplingParams { top_p: 0.8, ..plain() }, &logits), [0, 1, 3]);
    assert_eq!(support(SamplingParams { top_p: 1e-9, ..plain() }, &logits), [1]);
    assert_eq!(support(SamplingParams { min_p: 0.25, ..plain() }, &logits), [0, 1, 3]);
    assert_eq!(support(SamplingParams { min_p: 1.0, ..plain() }, &logits), [1]);
    // Top-p counts the probabilities that top-k left: 0.5 of 0.75 is enough for 0.66.
    assert_eq!(support(SamplingParams { top_k: 2, top_p: 0.66, ..plain() }, &logits), [1]);
    // Temperature comes last: it does not bring back what was cut, nor cut more.
    assert_eq!(support(SamplingParams { top_p: 0.7, temperature: 50.0, ..plain() }, &logits), [1, 3]);
}

/// The information of 0.5, 0.25, 0.15, 0.1 is 0.693, 1.386, 1.897, 2.303, its expected value 1.208. From there it is
/// 0.515, 0.178, 0.689, 1.095: 0.25 is the most typical, then 0.5, 0.15, 0.1.
#[test]
fn typical_p_by_hand() {
    let logits = known();
    for (typical_p, expected) in
        [(0.2, &[3][..]), (0.3, &[1, 3]), (0.74, &[1, 3]), (0.76, &[0, 1, 3]), (0.95, &[0, 1, 2, 3])]
    {
        assert_eq!(support(SamplingParams { typical_p, ..plain() }, &logits), expected, "{typical_p}");
    }
    // It comes after top-k: of 2/3 and 1/3 the expected information is 0.637, and 2/3 has 0.405, 1/3 has 1.099.
    assert_eq!(support(SamplingParams { typical_p: 0.3, top_k: 2, ..plain() }, &logits), [1]);
    // It comes before top-p and min-p, which count what it left: the largest that is left is 0.25.
    assert_eq!(support(SamplingParams { typical_p: 0.2, min_p: 1.0, ..plain() }, &logits), [3]);
}

/// Filters that sort in portions find what sorting everything finds.
#[test]
fn a_share_of_many_tokens() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5000) as f32 / 1000.0).collect();
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let mut order: Vec<usize> = (0..5000).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    for top_p in [0.05f32, 0.5, 0.9] {
        let mut sum = 0.0;
        let least = order.iter().find(|&&i| {
            sum += f64::from(logits[i]).exp() / total;
            sum >= f64::from(top_p)
        });
        let least = logits[*least.unwrap()];
        let mut sampler = Sampler::new(SamplingParams { top_p, temperature: 1e4, ..plain() }).unwrap();
        let found = (0..4000).map(|_| logits[choose(&mut sampler, &logits, &[], 0) as usize]);
        // Nearly uniform over thousands, so that the border or one beside it is drawn among so many.
        let found = found.fold(f32::INFINITY, f32::min);
        assert!((least..least + 0.01).contains(&found), "{top_p}: {found}, expected {least}");
    }
}

#[test]
fn draws_follow_the_softmax() {
    let count = 100_000;
    for (temperature, expected) in [(1.0, [0.15, 0.5, 0.1, 0.25]), (0.5, [0.0652, 0.7246, 0.0290, 0.1812])] {
        let found = draws(SamplingParams { temperature, ..plain() }, &known(), count);
        for (found, expected) in found.iter().zip(expected) {
            // Five standard deviations.
            let tolerance = 5.0 * (expected * (1.0 - expected) / f64::from(count as u32)).sqrt();
            assert!((*found as f64 / count as f64 - expected).abs() < tolerance, "{found} at {temperature}");
        }
    }
}

#[test]
fn the_repetition_penalty_counts_a_token_once_and_only_in_its_window() {
    let params = SamplingParams { repetition_penalty: 2.0, repetition_window: 3, ..greedy() };
    let mut sampler = Sampler::new(params).unwrap();
    let logits = [4.0, 3.0, 1.5, -1.0];
    for prompt in [0, 1] {
        assert_eq!(choose(&mut sampler, &logits, &[0], prompt), 1);
        assert_eq!(choose(&mut sampler, &logits, &[0, 0, 1], prompt), 0, "2, 1.5, 1.5, -1");
        assert_eq!(choose(&mut sampler, &logits, &[0, 2, 2, 2], prompt), 0, "out of the window");
        assert_eq!(choose(&mut sampler, &[-1.0, -1.5], &[0], prompt), 1, "-2, -1.5");
        assert_eq!(choose(&mut sampler, &logits, &[4_000_000], prompt), 0);
    }
}

#[test]
fn frequency_and_presence_count_generated_tokens() {
    let logits = [4.0, 3.0, 2.5];
    let mut frequency = Sampler::new(SamplingParams { frequency_penalty: 0.6, ..greedy() }).unwrap();
    let mut presence = Sampler::new(SamplingParams { presence_penalty: 0.6, ..greedy() }).unwrap();
    for (history, prompt, by_frequency, by_presence) in [
        (&[0, 0, 0, 0][..], 4, 0, 0),
        (&[0, 0, 0, 0], 3, 0, 0),
        // 2.8 and 3.4.
        (&[0, 0, 0, 0], 2, 1, 0),
        // 2.2, 2.4, 2.5 and 3.4, 2.4, 2.5.
        (&[0, 0, 0, 1], 0, 2, 0),
        (&[0], 7, 0, 0),
    ] {
        assert_eq!(choose(&mut frequency, &logits, history, prompt), by_frequency, "{history:?} {prompt}");
        assert_eq!(choose(&mut presence, &logits, history, prompt), by_presence, "{history:?} {prompt}");
    }
    let mut negative = Sampler::new(SamplingParams { presence_penalty: -2.0, ..greedy() }).unwrap();
    assert_eq!(choose(&mut negative, &logits, &[2], 0), 2);
}

#[test]
fn biases_are_added() {
    let bias = |logit_bias| Sampler::new(SamplingParams { logit_bias, ..greedy() }).unwrap();
    assert_eq!(choose(&mut bias(vec![(0, -100.0), (9, 5.0)]), &[4.0, 3.0, 2.0], &[], 0), 1);
    assert_eq!(choose(&mut bias(vec![(2, 100.0)]), &[4.0, 3.0, 2.0], &[], 0), 2);
    // Nothing brings back what the model rules out.
    assert_eq!(choose(&mut bias(vec![(0, 100.0)]), &[f32::NEG_INFINITY, 3.0], &[], 0), 1);
}

/// After "1 2 3 4 9 1 2 3" a 4 would make three tokens four: 2 * 1.5 ^ (3 - 2) = 3 less.
#[test]
fn dry_by_hand() {
    let history = [1, 2, 3, 4, 9, 1, 2, 3];
    let dry = Dry { multiplier: 2.0, base: 1.5, ..Dry::default() };
    let with = |dry: Dry| Sampler::new(SamplingParams { dry, ..greedy() }).unwrap();
    let logits = |four: f32| [0.0, 0.0, 1.0, 0.0, four];
    assert_eq!(choose(&mut with(dry.clone()), &logits(4.01), &history, 8), 4);
    assert_eq!(choose(&mut with(dry.clone()), &logits(3.99), &history, 8), 2);
    assert_eq!(choose(&mut with(dry.clone()), &logits(3.99), &history[..7], 0), 4, "only 1 2 before a 3");
    assert_eq!(choose(&mut with(Dry { allowed_length: 4, ..dry.clone() }), &logits(3.99), &history, 8), 4);
    assert_eq!(choose(&mut with(Dry { breakers: vec![9, 4], ..dry.clone() }), &logits(3.99), &history, 8), 4);
    // However long the repetition: a penalty, no failure.
    assert_eq!(choose(&mut with(dry), &[9.0, 1.0], &[0; 3000], 0), 1);
}

#[test]
fn what_is_not_allowed_is_not_chosen() {
    let mut sampler = Sampler::new(greedy()).unwrap();
    let logits = [4.0, 3.0, 2.0, 1.0];
    let mask = TokenMask::of(4, [1, 3]);
    let mut sample = |mask, banned: &[u32]| {
        sampler.sample(&logits, History::default(), Allowed { mask, banned }).map_err(|e| e.to_string())
    };
    assert_eq!(sample(None, &[0, 7]), Ok(1));
    assert_eq!(sample(Some(&mask), &[]), Ok(1));
    assert_eq!(sample(Some(&mask), &[1]), Ok(3));
    assert!(sample(Some(&mask), &[1, 3]).unwrap_err().contains("no token is left to choose"));
}

#[test]
fn unusable_logits_and_parameters_are_refused() {
    let mut sampler = Sampler::new(SamplingParams::default()).unwrap();
    for (logits, says) in [
        (&[0.0, f32::NAN][..], "NaN as the logit of token 1"),
        (&[f32::INFINITY, 1.0], "infinity"),
        (&[f32::NEG_INFINITY], "no logit"),
        (&[], "no logit"),
    ] {
        let error = sampler.sample(logits, History::default(), Allowed::default()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let d = SamplingParams::default;
    for (params, says) in [
        (SamplingParams { temperature: -0.1, ..d() }, "temperature is -0.1, but must be 0 or more"),
        (SamplingParams { temperature: f32::NAN, ..d() }, "temperature"),
        (SamplingParams { top_p: 0.0, ..d() }, "top_p"),
        (SamplingParams { typical_p: 1.1, ..d() }, "typical_p"),
        (SamplingParams { min_p: 1.5, ..d() }, "min_p"),
        (SamplingParams { repetition_penalty: 0.0, ..d() }, "repetition_penalty"),
        (
            SamplingParams { frequency_penalty: 2.5, ..d() },
            "frequency_penalty is 2.5, but must be from -2 to 2",
        ),
        (SamplingParams { presence_penalty: f32::INFINITY, ..d() }, "presence_penalty"),
        (SamplingParams { logit_bias: vec![(5, 1.0), (7, -101.0)], ..d() }, "logit_bias of token 7"),
        (SamplingParams { dry: Dry { multiplier: -1.0, ..Dry::default() }, ..d() }, "dry.multiplier"),
        (SamplingParams { dry: Dry { base: 0.5, ..Dry::default() }, ..d() }, "dry.base"),
    ] {
        let error = Sampler::new(params).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// Logits as extreme as f32 allows.
fn extreme() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![Just(f32::NEG_INFINITY), any::<f32>().prop_filter("", |x| x.is_finite())];
    prop::collection::vec(logit, 1..50).prop_filter("", |logits| logits.iter().any(|l| l.is_finite()))
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let filters =
        (prop_oneof![Just(0.0f32), 1e-6f32..100.0], 0usize..9, 0.01f32..=1.0, 0.01f32..=1.0, 0.0f32..=1.0);
    let penalties = (0.01f32..10.0, -2.0f32..=2.0, -2.0f32..=2.0, 0.0f32..10.0, any::<u64>());
    let bias = prop::collection::vec((0u32..60, -100.0f32..=100.0), 0..5);
    (filters, penalties, bias).prop_map(|(filters, penalties, logit_bias)| {
        let (temperature, top_k, typical_p, top_p, min_p) = filters;
        let (repetition_penalty, frequency_penalty, presence_penalty, multiplier, seed) = penalties;
        SamplingParams {
            temperature,
            top_k,
            typical_p,
            top_p,
            min_p,
            repetition_penalty,
            repetition_window: 64,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            dry: Dry { multiplier, ..Dry::default() },
            seed: Some(seed),
        }
    })
}

proptest! {
    #[test]
    fn same_seed_same_tokens(params in any_params(), logits in prop::collection::vec(-9.0f32..9.0, 1..200)) {
        prop_assert_eq!(draws(params.clone(), &logits, 20), draws(params, &logits, 20));
    }

    /// Whatever the parameters: always a token, and never one that is ruled out.
    #[test]
    fn a_token_is_always_found(
        params in any_params(),
        logits in extreme(),
        history in prop::collection::vec(0u32..60, 0..40),
        allowed in prop::collection::vec(any::<bool>(), 50),
        banned in prop::collection::vec(0u32..60, 0..9),
    ) {
        let mask = TokenMask::of(50, (0..50).filter(|&id| allowed[id as usize]));
        let may = |id: usize| logits[id].is_finite() && allowed[id] && !banned.contains(&(id as u32));
        let history = History { tokens: &history, prompt: history.len() / 2 };
        let mut sampler = Sampler::new(params).unwrap();
        let found = sampler.sample(&logits, history, Allowed { mask: Some(&mask), banned: &banned });
        match found {
            Ok(id) => prop_assert!(may(id as usize)),
            Err(_) => prop_assert!(!(0..logits.len()).any(may)),
        }
    }
}

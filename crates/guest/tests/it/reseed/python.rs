//! Python with the hooks.

use super::{Run, check_draws, check_transparent};
use casemate_guest::reseed::Hooked;
use casemate_proto::control::Reseed;
use std::fs;

#[test]
fn a_program_that_draws_is_seen_and_the_runtime_is_not() {
    check_draws(
        Reseed::Python,
        &[
            (
                "[the(name).__name__ for name in 'random secrets uuid ssl tempfile asyncio hashlib'.split()]",
                false,
            ),
            ("the('multiprocessing').current_process().name", false),
            ("the('random').Random(5).random()", false),
            ("the('random').seed(7) or the('random').random()", false),
            ("the('ssl').create_default_context().check_hostname", false),
            ("the('uuid').uuid5(the('uuid').NAMESPACE_DNS, 'x')", false),
            ("{'a', 'b'} and hash('x') and None", false),
            ("the('random').random()", true),
            ("the('random').Random().getrandbits(8)", true),
            ("the('random').getstate()[0]", true),
            ("the('random').choice('abc')", true),
            ("the('random').gauss(0, 1)", true),
            ("the('random').SystemRandom().random()", true),
            ("the('os').urandom(4)", true),
            ("the('os').getrandom(4)", true),
            ("the('secrets').token_hex(4)", true),
            ("the('uuid').uuid4()", true),
            ("the('uuid').uuid1()", true),
            ("the('uuid').getnode()", true),
            ("the('ssl').RAND_bytes(4)", true),
            ("the('tempfile').mktemp()", true),
        ],
    );
}

#[test]
fn what_the_program_did_not_seed_is_seeded_in_each_generation() {
    let run = Run::new(Reseed::Python);
    let mut program = run.start(&[], &[]);
    let mut kept = |expression: &str, value: &str, keeps: bool| {
        let define = format!("globals().update(kept={expression}) or repr(kept{value})");
        let before = program.eval(&define);
        assert_eq!(program.eval(&format!("repr(kept{value})")), before, "{expression} in one generation");
        run.reseeder.bump().unwrap();
        let after = program.eval(&format!("repr(kept{value})"));
        assert_eq!(after == before, keeps, "{expression} in the next generation");
    };
    kept("the('random')", ".getstate()", false);
    kept("the('random')._inst", ".getstate()", false);
    kept("the('random').Random()", ".getstate()", false);
    kept("the('tempfile')._get_candidate_names()", ".rng.getstate()", false);
    kept("type('Own', (the('random').Random,), {})()", ".getstate()", false);
    kept("the('random').Random(5)", ".getstate()", true);
    kept("the('random').Random('text')", ".getstate()", true);
    kept("type('Own', (the('random').Random,), {})(5)", ".getstate()", true);
    // Seeded and then not, and the other way round.
    kept("(lambda r: r.seed() or r)(the('random').Random(5))", ".getstate()", false);
    kept("(lambda r: r.seed(0) or r)(the('random').Random())", ".getstate()", true);
    kept(
        "(lambda r: r.setstate(the('random').Random(5).getstate()) or r)(the('random').Random())",
        ".getstate()",
        true,
    );
    kept("the('copy').copy(the('random').Random(5))", ".getstate()", true);
    kept("the('pickle').loads(the('pickle').dumps(the('random').Random(5)))", ".getstate()", true);
}

#[test]
fn each_way_to_draw_looks_at_the_generation() {
    let run = Run::new(Reseed::Python);
    let mut program = run.start(&[], &[]);
    // The state that a draw leaves would be this one, were the generator not seeded anew.
    for draw in
        ["random()", "getrandbits(8)", "randrange(100)", "choice('ab')", "shuffle([1, 2])", "gauss(0, 1)"]
    {
        let define = "globals().update(one=the('random').Random(), two=the('random').Random()) or \
                      (one.random(), two.__class__.__base__.setstate(two, one.__class__.__base__.getstate(one)), \
                      setattr(two, '_seeded_in', one._seeded_in), setattr(two, 'gauss_next', None)) and None";
        program.eval(define);
        let twins = format!(
            "one.{draw} and None or two.{draw} and None or \
                             one.__class__.__base__.getstate(one) == two.__class__.__base__.getstate(two)"
        );
        assert_eq!(program.eval(&twins), true, "{draw} of twins in one generation");
        run.reseeder.bump().unwrap();
        assert_eq!(program.eval(&twins), false, "{draw} of twins in the next generation");
    }
}

#[test]
fn no_difference_can_be_seen() {
    let expressions = [
        "dict(the('os').environ)",
        "the('sys').path",
        "[the(name).__name__ for name in 'random ssl uuid secrets tempfile'.split()]",
        "the('random').Random(5).random()",
        "[the('random').seed(3), the('random').random(), the('random').gauss(0, 1), the('random').sample(range(9), 3)]",
        "the('random').Random('x').getrandbits(70)",
        "the('random').Random(5).getrandbits(-1)",
        "the('random').seed([])",
        "the('random').Random.__mro__",
        "the('random').random.__name__ + the('random').Random.seed.__qualname__",
        "sorted(name for name in dir(the('random')) if name != '_seeded_in')",
        "the('os').urandom.__name__ + the('uuid').uuid1.__module__",
        "len(the('os').urandom(5))",
        "the('inspect').getsource(the('random'))[:40]",
        "the('random').__spec__.loader.__class__.__name__",
        "the('subprocess').check_output([the('sys').executable, '-c', 'import os, sys; print(dict(os.environ), sys.path)'])",
        "the('multiprocessing').get_context('fork').Pool(2).map(abs, [-1, -2])",
        "the('no_such_module')",
    ];
    check_transparent(Reseed::Python, &[], &expressions);
    check_transparent(Reseed::Python, &[("PYTHONPATH", "/nowhere"), ("LD_PRELOAD", "")], &expressions);
}

#[test]
fn another_sitecustomize_is_still_imported() {
    let run = Run::new(Reseed::Python);
    let other = run.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("sitecustomize.py"), "import random\nVALUE = random.Random(5).random()\n").unwrap();
    let mut program = run.start(&[], &[("PYTHONPATH", other.to_str().unwrap())]);
    assert_eq!(program.eval("the('sitecustomize').VALUE"), 0.6229016948897019);
    assert_eq!(
        program.eval("the('sitecustomize').__file__"),
        other.join("sitecustomize.py").to_str().unwrap()
    );
    assert_eq!(run.state(&program), Hooked::Complete);
    assert_eq!(program.eval("the('random').random() < 1"), true);
    assert_eq!(run.state(&program), Hooked::Drawn(program.pid()));
}

#[test]
fn a_python_that_ignores_its_environment_is_missed_and_a_forked_child_is_not() {
    let run = Run::new(Reseed::Python);
    let mut isolated = run.start(&["-I"], &[]);
    isolated.eval("1");
    assert_eq!(run.state(&isolated), Hooked::Missing(Some(isolated.pid())));

    let mut program = run.start(&[], &[]);
    let child =
        program.eval("(lambda pid: pid or the('time').sleep(60))(the('os').fork())").as_i64().unwrap();
    assert_eq!(run.reseeder.state(&[program.pid(), child as i32]), Hooked::Complete);
    program.eval(&format!("the('os').kill({child}, 9)"));
}

"""What could be imported from version 0.1, from packages and from modules that have moved since, still can be."""

import importlib
import subprocess
import sys

import pytest

import lxt_compose
from lxt_compose import old_paths

VERSION_0_1 = """
lxt_compose: AlphaBeta Attention Attribution AttributionError Canonizer Composite CompositeError ConservationError
    CoverageReport Epsilon Family Flat Gamma Gated GatedEpsilon Identity Ledger MatchError MergeBatchNorm Norm
    NotFiniteError Pass Ratio ReLUBetaSmooth ReLUDeconvNet ReLUGuidedBackprop Registration RegistrationError
    ResidualGamma Row Rule RuleError SignalTakesAll SoftmaxTaylor Stabiliser StateSpace Status Stop
    TaylorDecomposition UncoveredError Uniform UniformEpsilon ValueAttention WSquare ZBox ZPlus attribute baselines
    blocks check_conservation default_rules evaluate first_layer functional heatmap kinds modules presets remove
    where
lxt_compose.attribution: Attribution Neuron attribute blocks composite_of
lxt_compose.conservation: Checked ConservationCheck Ran check_conservation
lxt_compose.demo: DemoResult run_demo
lxt_compose.evaluate: Flip Randomization correlation flip leave_one_out randomization ranks
lxt_compose.heatmap: ImageHeatmap Picture Piece TextHeatmap TraceHeatmap guess_scheme image page pieces_of scheme_of
    text trace words_of
lxt_compose.ledger: Amount Entry GraphCheck GraphRow KINDS Ledger ModuleEntry Recorder
lxt_compose.presets: IMAGES TRANSFORMERS attnlrp available beta_smooth cp_lrp deconvnet epsilon epsilon_alpha2_beta1
    epsilon_alpha2_beta1_flat epsilon_gamma_box epsilon_plus epsilon_plus_flat excitation_backprop find gamma_vit
    get guided_backprop relp res_lrp
lxt_compose.rules: AlphaBeta Attention Call DropIn Epsilon EpsilonRule FORMULATIONS Flat GRADIENT Gamma Gated
    GatedEpsilon Identity IdentityRule Norm Pass RELEVANCE Ratio ReLUBetaSmooth ReLUDeconvNet ReLUGuidedBackprop
    ResidualGamma Rule SignalTakesAll SoftmaxTaylor StateSpace Stop StopRelevanceRule TaylorDecomposition
    TaylorDecompositionRule Uniform UniformEpsilon UniformEpsilonRule UniformRule ValueAttention WSquare ZBox ZPlus
    default_rule default_rules find_carriers is_carrier rule_of
lxt_compose.baselines: attention_rollout captum gradient_x_attention_rollout gradient_x_input integrated_gradients
    random smoothgrad
lxt_compose.ops: Family Op can_mutate display_name is_reversed mutates op_named op_of same_op
lxt_compose.functional: add2 epsilon_lrp identity layer_norm linear_epsilon matmul mean mul2 normalize
    rms_norm_identity softmax stop_relevance
lxt_compose.modules: LayerNormEpsilon LinearEpsilon MultiheadAttentionCP MultiheadAttention_CP RMSNormIdentity
    SoftmaxDT
lxt_compose.demo.data: DemoError Digits load_digits require_packages shifted
lxt_compose.demo.explain: Explained cnn_composite explain relevance_of token_relevance vit_composite
lxt_compose.demo.models: Residual SmallCNN SmallViT
lxt_compose.demo.training: Settings Trained accuracy default_cache one_thread trained
lxt_compose.matching: Assignment Binding FirstLayer Predicate Where assignments first_layer match names_of where
lxt_compose.numerics: Stabiliser broadcasts_to check_epsilon check_number componentwise map_tensors may_write_over
    narrowed over_positive sum_to tensors_in
lxt_compose.gradients: Bypass Damp Graft NoRelevance OverOutput Rebind RelevanceFunction Share Slots TimesInput
    bypass graft rebind taylor_softmax
lxt_compose.saving: Kept keep prune rescue save storage_of
lxt_compose.as_trained: Frozen as_trained
lxt_compose.written_out: State Step attention_body cosine_similarity glu
lxt_compose.ops.resolve: can_mutate display_name is_reversed mutates op_named op_of same_op
lxt_compose.canonize: Canonizer Handle MergeBatchNorm Merged
lxt_compose.merging: Pair StandIn copy_as_merged drop_stand_ins merged own
lxt_compose.running_order: Test Use followed_by
lxt_compose.coverage_rows: Line Row Status fold line_of
lxt_compose.tally: Frame OpKey Tally
lxt_compose.folding: Column Numbers Template block_of escape_markdown fill fits fold_names fold_paths join_numbers
    natural_widths printable products ranges room shorten shorten_list shorten_middle split_numbers text_table
lxt_compose.observing: Observer Seen watch
lxt_compose.function_mode: FunctionMode
lxt_compose.hooks: Site is_our_hook
lxt_compose.units: Unit may_be_unit
lxt_compose.rejoining: rejoin
lxt_compose.registration: Registration remove
lxt_compose.checkpoint: CheckpointError Loaded dummy_inputs load_beside load_model quiet_transformers
lxt_compose.commands: Answer explain list_presets list_rules report
lxt_compose.rules.bypass: Identity Pass Ratio Stop Uniform only_output
lxt_compose.rules.first: Flat WSquare ZBox
lxt_compose.rules.gates: Gated GatedEpsilon SignalTakesAll gates_among
lxt_compose.rules.normalisation: Form Norm
lxt_compose.rules.residual: ResidualGamma
lxt_compose.rules.taylor: Distribution Reference TaylorDecomposition linear_part
lxt_compose.rules.lookup: Lookup is_for_training
lxt_compose.rules.dropins: DropIn EpsilonRule IdentityRule StopRelevanceRule TaylorDecompositionRule
    UniformEpsilonRule UniformRule rule_of
lxt_compose.rules.jacobian: layer_of
lxt_compose.rules.layers: Apply Back Layer in_pieces without_autocast
lxt_compose.rules.known_layers: as_function given known_layer plain_layer
lxt_compose.rules.parts: Part Parts absolute negative ones positive square whole
lxt_compose.heatmap.colours: colour_map contrast luminance over scale_of strength
lxt_compose.evaluate.randomising: Explain Randomization randomization
"""
"""Each module, and the names that it gave."""


def read(table):
    found, names = {}, []
    for word in table.split():
        if word.endswith(":"):
            names = found.setdefault(word[:-1], [])
        else:
            names.append(word)
    return found


PATHS = read(VERSION_0_1)


@pytest.mark.parametrize("module", PATHS)
def test_names_of_version_0_1_can_be_imported(module):
    found = importlib.import_module(module)
    assert not [name for name in PATHS[module] if not hasattr(found, name)]


def test_every_path_that_moved_is_in_the_table():
    assert set(old_paths._Finder.moved) <= {*PATHS, "lxt_compose.commands"}  # whose parts only the command line uses


def test_an_old_path_and_a_new_one_give_the_same_object():
    from lxt_compose.keys import where
    from lxt_compose.matching import where as old

    assert old is where


@pytest.mark.parametrize(
    "script",
    [
        "from lxt_compose.matching import where; from lxt_compose import Stabiliser, Stabilizer",
        "import lxt_compose; assert lxt_compose.canonize.MergeBatchNorm is lxt_compose.MergeBatchNorm",
    ],
)
def test_old_paths_are_there_in_a_process_that_imports_nothing_else(script):
    assert subprocess.run([sys.executable, "-c", script], timeout=100).returncode == 0


def test_names_are_spelled_as_they_are_now():
    from lxt_compose import Stabiliser, Stabilizer
    from lxt_compose.heatmap.colors import color_map
    from lxt_compose.heatmap.colours import colour_map

    assert colour_map is color_map
    assert Stabiliser is Stabilizer


def test_a_name_that_no_version_had_is_an_error():
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from lxt_compose.matching import nothing")
    with pytest.raises(AttributeError, match="module 'lxt_compose' has no attribute 'nothing'"):
        lxt_compose.nothing  # noqa: B018

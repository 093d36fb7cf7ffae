"""The audit.toml that `deepssim-scan audit --init` writes: what can be asked for, with comments."""

TEMPLATE = """\
# What `deepssim-scan audit` does every night. Paths are relative to the folder of this file.

[training]
images = "scans/"                    # folder of the training images
index = "deepssim-index"             # their index, which each night brings up to date
# include = ["**/*.png"]             # read only these files
# exclude = ["**/localizer*"]        # leave these out
# manifest = "training.csv"          # read only the files that it lists; may name subjects
# subject-regex = "(sub-[0-9]+)/"    # finds the subject in a path
# subject-key = "subject.key"        # file with a secret, under which subjects are hashed
# holdout = "other-patients/"        # images of people who are not in the training set
# adapt = "auto"                     # whether the encoder is trained on the training set; or: never
# index-type = "auto"                # or: flat, hnsw, ivf, ivfpq
# recall = 0.999                     # share of best matches that an approximate index is to find

[[synthetic]]
name = "ldm-v3"                      # names its reports; let it stay the same from night to night
images = "generated/ldm-v3/"

# [[synthetic]]                      # any number of them
# name = "gan-baseline"
# images = "generated/gan/"

[policy]
fail_if = ["duplicates > 0", "complete == false", "canary_recall < 0.95"]
warn_if = ["similar_rate > 0.02", "drift > 0.1", "training_gone > 0"]
# false_alarm = 0.001                # share of images of other people that may be flagged
# canaries = 200                     # copies of training images that are planted in each set
# min-recall = 0.99                  # share that it must find at least, or the night is incomplete
# readers = 2                        # who must have decided on a finding until it is reviewed
# waivers = "waivers.toml"           # findings that somebody answers for

[history]
path = "deepssim-audits"             # what was found, night by night
keep_days = 365

[report]
# thumbnails = true                  # pictures of the findings in the pages: they are of patients
# pseudonyms = "names.key"           # file with a secret, under which names are hashed in the pages

[dossier]                            # what the record of a release states; gaps are shown
# purpose = "open data for segmentation"
# recipient = "the public"
# exclusions = "none"
# checkpoint = "ldm-v3, step 100000"
# epochs = "100"
# seeds = "0 to 999"
# privacy = "none"
# tried = "sampling with the prompts of the training set"
# not_tried = "white-box extraction"
# tried_by = "the imaging group"
# residual_risk = "parts smaller than a quarter of an image are not looked for"
# conditions = "no attempt to identify anybody"
# signer = "the privacy officer"
# review_date = "2027-06-30"

[machine]
# workers = 8                        # processes; one a core without it
# scheduler = "tls://10.1.0.5:8786"  # a Dask cluster
# device = "cuda"
"""

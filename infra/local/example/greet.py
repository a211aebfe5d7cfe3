"""The example application: says what its image was built with."""

import os

import cowsay

cowsay.cow(os.environ["GREETING"])

"""Ready captions for teaching a new word: what varies around it is what it should not mean."""

OBJECT_TEMPLATES = (
    "a photo of {}",
    "a clear photo of {}",
    "a detailed photo of {}",
    "a simple snapshot of {}",
    "a picture that shows {}",
    "a picture of the whole of {}",
    "a close view of {}",
    "a distant view of {}",
    "a view of {} from the front",
    "a view of {} from one side",
    "{} in the middle of a picture",
    "{} on a plain background",
    "{} in soft daylight",
    "{} under bright lamps",
    "{} seen indoors",
    "{} seen outdoors",
    "an amateur photo of {}",
    "a professional photo of {}",
    "a photo with {} and nothing else",
    "a photo in which {} is in focus",
)

STYLE_TEMPLATES = (
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "a landscape in the style of {}",
    "a portrait in the style of {}",
    "a still life in the style of {}",
    "a street scene in the style of {}",
    "an animal in the style of {}",
    "a small sketch in the style of {}",
    "a large canvas in the style of {}",
    "an illustration made in the manner of {}",
    "an artwork that looks like {}",
    "an image with the look of {}",
    "a scene with the colours and lines of {}",
    "art in the style of {}",
    "a work that belongs to the style of {}",
)

TEMPLATES = {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}
"""What the word stands for -> captions with one {} each, where the word goes."""

// The latest augmented images, or why there are none.

import { get, OVER, write } from "./format.js";

let pictureSeen = "", pictureGone = false; // the run whose picture was here

export function drawPicture({ name, picture_t, state, step }) {
  const seen = pictureSeen === name || (OVER.includes(state) && step > 0);
  get("augmented").hidden = picture_t === null && !seen;
  if (picture_t === null) return sayPictureIsGone("There is no picture: latest.jpg is not in the run's folder. It was deleted, or could not be written.");
  const source = `status/${encodeURIComponent(name)}/picture?t=${picture_t}`;
  pictureSeen = name;
  if (get("picture").getAttribute("src") !== source) { pictureGone = false; get("picture").src = source; }
  if (pictureGone) return;
  get("picture").hidden = false;
  write("picture-words", `As training saw them at ${new Date(picture_t * 1e3).toLocaleTimeString()}: cropped, mirrored, recoloured at random.`);
}

function sayPictureIsGone(words) {
  get("picture").hidden = true;
  get("picture").removeAttribute("src");
  write("picture-words", words);
}

get("picture").addEventListener("error", () => {
  pictureGone = true;
  get("picture").hidden = true;
  write("picture-words", "The picture cannot be shown: latest.jpg in the run's folder was deleted just now, or is no JPEG of at most a megabyte.");
});

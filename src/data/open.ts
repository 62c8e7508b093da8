/** Labelled pictures at a path, whatever their form: what every command that takes a data set calls. */

import { type Dataset, imageFolder, type ImageFolderOptions } from './folder.js'

/** @throws whatever the form found there throws: ERR_DATA, ERR_FILE, ERR_FORMAT. */
export async function openDataset(path: string, options: ImageFolderOptions = {}): Promise<Dataset> {
  return imageFolder(path, options)
}
